"""The peer's side of benchmarks.step: open_clip's CLIP and loss, torch's fused AdamW.

What open_clip's own training does with --torchcompile, and with --precision amp_bf16
for bfloat16: the model compiled, the loss not, decay on matrices only, the logit scale
clamped after each step. Its packages are in requirements-bench.txt.
"""

from collections.abc import Callable
import contextlib
import functools
import math
import platform
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import turns
from benchmarks.contenders.vision import torchvision  # noqa: F401  (before open_clip)

# isort: split
import open_clip
from open_clip.model import CLIP

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_of(settings: dict[str, Any]) -> CLIP:
  """Returns a CLIP with the shapes of `settings`; GELU in its tanh form, as ours."""
  s = settings["shape"]
  act = dict(act_kwargs={"approximate": "tanh"}) if settings["tanh"] else {}
  width, depth, heads = s["vision"]
  vision = dict(image_size=s["image"], patch_size=s["patch"], layers=depth, width=width)
  text_width, text_depth, text_heads = s["text"]
  text = dict(context_length=s["length"], vocab_size=s["vocab"], width=text_width)
  return CLIP(
    s["embed"],
    vision | dict(head_width=width // heads) | act,
    text | dict(layers=text_depth, heads=text_heads) | act,
  )


def optimizer_of(model: CLIP) -> torch.optim.Optimizer:
  """Returns fused AdamW with open_clip's two groups: matrices decay, the rest not."""
  named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

  def plain(name: str, p: torch.Tensor) -> bool:
    return p.ndim < 2 or any(k in name for k in ("bn", "ln", "bias", "logit_scale"))

  groups = [
    {"params": [p for n, p in named if plain(n, p)], "weight_decay": 0.0},
    {"params": [p for n, p in named if not plain(n, p)], "weight_decay": 0.2},
  ]
  return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)


def batch_of(
  settings: dict[str, Any], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns random pixels and ids; the largest id ends each text, as CLIP's does."""
  s, b = settings["shape"], settings["batch"]
  rng = np.random.default_rng(0)
  text = rng.integers(1, s["vocab"] - 1, (b, s["length"]))
  text[:, -1] = s["vocab"] - 1
  image = rng.standard_normal((b, 3, s["image"], s["image"]), np.float32)
  return torch.from_numpy(image).to(device), torch.from_numpy(text).to(device)


def matmul_flops(dtype: torch.dtype, size: int, device: str) -> float:
  """Returns the FLOP/s of a product of two square matrices; see `turns.best`."""
  x = torch.randn(size, size, device=device).to(dtype)

  def step():
    y = x @ x
    return lambda: y[0, 0].item()

  return 2 * size**3 / turns.best(step, device == "cpu")


def prepare(settings: dict[str, Any]):
  """Returns (facts, step, last), as `turns.serve` wants them."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cpu":
    torch.set_num_threads(turns.cores())
  torch.backends.cuda.matmul.allow_tf32 = True  # as open_clip's training does
  torch.manual_seed(0)
  model = model_of(settings).to(device).train()
  optimizer = optimizer_of(model)
  image, text = batch_of(settings, device)
  loss_of = open_clip.ClipLoss()
  # The counter sees no FLOPs in the CPU's fused attention: count the plain one's.
  plain = sdpa_kernel(SDPBackend.MATH)
  with plain, torch.no_grad(), FlopCounterMode(display=False) as counter:
    model(image[:1], text[:1])
  run = torch.compile(model) if settings["compile"] else model
  cast: Callable[[], Any] = contextlib.nullcontext
  if settings["dtype"] != "float32":
    cast = functools.partial(torch.autocast, device, DTYPES[settings["dtype"]])
  state: dict[str, torch.Tensor] = {}

  def step():
    optimizer.zero_grad()
    with cast():
      loss = loss_of(*run(image, text)[:3])
    loss.backward()
    optimizer.step()
    with torch.no_grad():
      model.logit_scale.clamp_(0, math.log(100))
    state["loss"] = loss
    # On a GPU, the stream's last kernel, not only the loss's.
    return torch.cuda.synchronize if device == "cuda" else lambda: None

  seconds = turns.clocked(step, 1).wall  # compiles
  ceiling = matmul_flops(DTYPES[settings["dtype"]], settings["ceiling"], device)
  name = turns.processor() if device == "cpu" else torch.cuda.get_device_name()
  facts = dict(
    device=name,
    cores=turns.cores() if device == "cpu" else 0,
    platform="cpu",
    versions=f"Python {platform.python_version()}, torch {torch.__version__}, "
    f"open_clip_torch {open_clip.__version__}",
    parameters=sum(p.numel() for p in model.parameters()),
    gflops_per_example=round(3e-9 * counter.get_total_flops(), 4),
    compile_seconds=round(seconds, 1),
    matmul_tflops=round(ceiling / 1e12, 4),
  )

  def last() -> dict[str, Any]:
    found = {"loss": round(state["loss"].item(), 4)}
    if device == "cuda":
      found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found

  return facts, step, last


if __name__ == "__main__":
  turns.serve(prepare)
