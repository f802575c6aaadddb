"""Kernels compile for Hopper, without a GPU: pip install -r requirements-gpu.txt."""

import math
import pathlib
import re
import subprocess

import pytest

triton = pytest.importorskip("triton")
REGISTERS, SHARED = 65_536, 233_472  # of a multiprocessor; a program has 1 KiB besides
POINTERS = {
  "bf16": "qkv y d by x z normed more by_y by_x",
  "fp32": "log sums scale bias",
  "i32": "length",
}
KINDS = {f"{p}_ptr": f"*{t}" for t, names in POINTERS.items() for p in names.split()}


def compiled(kernel, source, warps, tmp_path, **constants):
  """Returns (registers of a thread, bytes of its stack, bytes of shared memory)."""
  from triton.backends.compiler import GPUTarget

  names = kernel.arg_names
  kinds = {name: KINDS.get(name, "constexpr") for name in names}
  divisible = {
    (names.index(n),): [["tt.divisibility", 16]] for n in names if n in KINDS
  }
  values = {(names.index(name),): value for name, value in constants.items()}
  made = triton.compile(
    source(kernel, kinds, constexprs=values, attrs=divisible),
    target=GPUTarget("cuda", 90, 32),
    options=dict(num_warps=warps),
  )
  (tmp_path / "ptx").write_text(made.asm["ptx"])
  ptxas = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
  said = subprocess.run(
    [ptxas, "-v", "--gpu-name=sm_90a", tmp_path / "ptx", "-o", tmp_path / "cubin"],
    capture_output=True,
    text=True,
    check=True,
  ).stderr
  used = re.search(r"(\d+) bytes stack frame.*Used (\d+) registers", said, re.DOTALL)
  assert "C75" not in said, said  # products that wait for each other
  return int(used[2]), int(used[1]), made.metadata.shared


@pytest.mark.parametrize(
  ("n", "kind"), [(197, "all"), (77, "causal"), (50, "limited"), (1, "all")]
)
def test_two_programs_of_attention_share_a_multiprocessor(n, kind, tmp_path):
  from triton.experimental.gluon._runtime import GluonASTSource

  from model.layers.kernels import attention, attention_backward

  options = dict(n=n, h=12, factor=math.log2(math.e) / 8)
  options |= dict(causal=kind == "causal", limited=kind == "limited")
  for kernel, more in (
    (attention.attention_forward, {}),
    (attention_backward.attention_backward, {"scale": 0.125}),
  ):
    found = compiled(kernel, GluonASTSource, 4, tmp_path, **options, **more)
    registers, stack, shared = found
    assert stack == 0 and 2 * 4 * 32 * registers <= REGISTERS, found
    assert 2 * (shared + 1024) <= SHARED, found


@pytest.mark.parametrize("w", [512, 768])
def test_the_others_spill_nothing(w, tmp_path):
  from triton.compiler import ASTSource

  from model.layers.kernels import activation, norm

  rows = dict(t=1000, w=w, block=1024, g=100, epsilon=1e-6, add=True)
  columns = dict(t=1000, w=4 * w, columns=512, rows=256, step=8, kind="gelu_tanh")
  for kernel, warps, options in (
    (norm.norm_forward, 1, rows),
    (norm.norm_backward, 1, rows),
    (activation.activation_backward, 4, columns),
  ):
    _, stack, _ = compiled(kernel, ASTSource, warps, tmp_path, **options)
    assert stack == 0, kernel
