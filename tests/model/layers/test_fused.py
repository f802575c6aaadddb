"""What kernels compute in passing is what it was apart; formulas stand in for them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import attention, fused, launch
from model.layers.fused import Sum
from model.layers.mlp import ACTIVATIONS, Mlp
from model.layers.norm import Norm
from sharding import mesh as mesh_lib
from tests.model.layers import kernels
from tests.model.layers.filled import filled

B, N, H, D = 4, 5, 2, 16
W = H * D
LENGTHS = np.array([5, 1, 3, 4], np.int32)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def check(got, want):
  def same(path, a, b):
    where = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=where)

  jax.tree_util.tree_map_with_path(same, got, want)


def pulled(f, *args):
  y, pull = jax.vjp(jax.jit(f), *args)
  weights = [normal(9 + i, *x.shape) for i, x in enumerate(jax.tree.leaves(y))]
  return y, pull(jax.tree.unflatten(jax.tree.structure(y), weights))


@pytest.mark.parametrize("kind", ["all", "lengths", "causal"])
def test_attention_leaves_the_gradients_of_its_biases(monkeypatch, kind):
  calls = kernels.stand_in(monkeypatch)
  lengths = jnp.asarray(LENGTHS) if kind == "lengths" else None
  x = normal(0, B, N, W)

  def module(name):
    return attention.Attention(H, kind == "causal", implementation=name)

  params = filled(module("xla"), x)

  def run(name):
    return pulled(lambda p, x: module(name).apply(p, x, lengths=lengths), params, x)

  want = run("xla")
  assert not calls
  check(run("triton"), want)
  assert set(calls) == {"attend", "attend_backward"}


def test_other_attention_is_not_its_affair(monkeypatch):
  calls = kernels.stand_in(monkeypatch, jnp.bfloat16)
  monkeypatch.setattr(
    attention, "_cudnn", lambda *args: calls.append("cudnn") or args[0]
  )
  module = attention.Attention(H, dtype=jnp.bfloat16, implementation="triton")
  x = normal(0, B, N, W)
  params, params_of_one = (filled(module.clone(heads=h), x) for h in (H, 1))
  calls.clear()
  mask, segments = jnp.ones((B, N), bool), jnp.zeros((B, N), jnp.int32)
  for options in ({"mask": mask}, {"segments": segments}, {"query": x[:, :1]}):
    module.apply(params, x, **options)
  module.apply(params, normal(0, B, fused.TOKENS + 1, W))
  module.clone(dtype=jnp.float32).apply(params, x)
  module.clone(heads=1).apply(params_of_one, x)
  with monkeypatch.context() as other:
    other.setattr(fused.launch, "hopper", lambda: False)
    module.apply(params, x)
  assert calls == ["cudnn"] * 7
  module.apply(params, x, at=0)  # one query: XLA's
  assert calls == ["cudnn"] * 7
  module.apply(params, x)
  assert calls[7:] == ["attend"]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_mlp_leaves_the_gradients_of_its_biases(monkeypatch, kind):
  calls = kernels.stand_in(monkeypatch)
  x = normal(0, B, N, W)
  params = filled(Mlp(8, kind), x)

  def run(**options):
    return pulled(lambda p, x: Mlp(8, kind, **options).apply(p, x), params, x)

  check(run(fused=True), run())
  assert calls == ["activate_backward"]


@pytest.mark.parametrize("part", ["x", "z", "bias"])
def test_sum_and_norm_are_one(monkeypatch, part):
  calls = kernels.stand_in(monkeypatch)
  x, z, bias = normal(0, B, N, W), normal(1, B, N, W), normal(2, W)
  given = {"x": (x,), "z": (x, z), "bias": (x, z, bias)}[part]
  params = filled(Norm(), x)

  def apart(params, *given):
    y = sum(given[:2], jnp.zeros(()))
    if len(given) == 3:
      y = y + given[2] - jax.lax.stop_gradient(given[2])  # it was added already
    return y, Norm().apply(params, y)

  def as_one(params, *given):
    return fused.AddNorm().apply(params, Sum(*given))

  with jax.numpy_rank_promotion("allow"):
    want = pulled(apart, params, *given)
  check(pulled(as_one, params, *given), want)
  assert set(calls) == {"add_norm", "add_norm_backward"}


@pytest.mark.parametrize("batch", [8, 6])
def test_devices_have_their_own_examples_and_heads(monkeypatch, batch):
  calls = kernels.stand_in(monkeypatch)
  x = normal(0, batch, N, W)
  attend = attention.Attention(H, implementation="triton", leave=True)
  mlp, norm = Mlp(8, fused=True, leave=True), fused.AddNorm()
  params = [filled(m, x) for m in (attend, mlp, Norm())]

  def run(params, x):
    first, second, last = params
    y, bias = attend.apply(first, x)
    y, z = norm.apply(last, Sum(x, y, bias))
    return norm.apply(last, Sum(y, *mlp.apply(second, z)))

  want = pulled(run, params, x)
  shapes = set()
  monkeypatch.setattr(
    fused.launch, "attend", lambda qkv, *a, **kw: shapes.add(qkv.shape) or
    kernels.attend(qkv, *a, **kw),
  )  # fmt: skip
  mesh = mesh_lib.make({"data": 2, "fsdp": 2, "expert": 1, "tensor": 2})
  with jax.set_mesh(mesh):
    got = pulled(run, params, x)
  check(jax.device_get(got), jax.device_get(want))
  assert shapes == {(2 if batch == 8 else 6, N, H // 2, 3, D)}
  assert set(calls) > {"activate_backward", "add_norm_backward"}


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "jax_triton", None)
  monkeypatch.setattr(fused.launch, "hopper", lambda: True)
  module = attention.Attention(1, dtype=jnp.bfloat16, implementation="triton")
  with pytest.raises(ModuleNotFoundError, match=r"requirements-gpu.txt .*'cudnn'"):
    module.init(jax.random.key(0), normal(0, B, N, fused.DEPTH))


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("NVIDIA H100 80GB HBM3", True),
    ("NVIDIA H200", True),
    ("NVIDIA GH200 480GB", True),
    ("NVIDIA A100-SXM4-80GB", False),
    ("NVIDIA B200", False),
    (jax.devices()[0].device_kind, False),
  ],
)
def test_described_devices_have_hoppers_instructions_by_name(
  kind, expected, monkeypatch
):
  monkeypatch.setattr(launch.device, "ambient", lambda: ("gpu", kind))
  assert launch.hopper() is expected
