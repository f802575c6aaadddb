"""Our side of benchmarks.step: a CLIP of the given size, as train.py would train it."""

import ast
from typing import Any

from ml_collections import ConfigDict

from benchmarks import device, turns
from configs import base

# By platform: on a GPU the kernels of requirements-gpu.txt.
OVERRIDES = {
  "cpu": (),
  "gpu": ("model.trunk.attention=triton", "model.remat=activations"),
}


def config_of(settings: dict[str, Any]) -> ConfigDict:
  """Returns the config of a CLIP with the shapes of `settings`.

  Raises:
    KeyError: an override of a key that configs/base.py does not have.
  """
  s, c = settings["shape"], base.get_config()
  c.batch_size = settings["batch"]
  c.model.dtype = settings["dtype"]
  c.model.embed_dim = s["embed"]
  size, patch = (s["image"], s["image"], 3), (s["patch"], s["patch"])
  image = base.modality(size=size, patch=patch, pool="cls", stem_norm=True)
  text = base.modality(stem="tokens", vocab=s["vocab"], length=s["length"], pool="last")
  for modality, part in ((image, "vision"), (text, "text")):
    width, depth, heads = s[part]
    modality.trunk.update(dict(width=width, depth=depth, heads=heads, mlp=4 * width))
  text.trunk.causal = True
  c.model.modalities = ConfigDict(dict(image=image, text=text))
  # open_clip's optimizer: the same moments and decay, no clipping of gradients.
  c.optimizer.update(dict(lr=1e-4, warmup=0, schedule="constant", clip=0.0))
  c.optimizer.update(dict(weight_decay=0.2, b1=0.9, b2=0.98))
  with c.unlocked():
    for change in settings["overrides"]:
      set_key(c, change)
  return c


def set_key(config: ConfigDict, change: str) -> None:
  """Obeys "model.trunk.depth=2": the value is read as Python's, else as a text.

  Raises:
    KeyError: there is no such key.
  """
  key, _, value = change.partition("=")
  *folders, last = key.split(".")
  for name in folders:
    config = config[name]
  # A modality's own trunk is empty until something of it differs.
  if last not in config and "modalities" not in folders:
    raise KeyError(f"config has no key {key}")
  try:
    config[last] = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    config[last] = value


def prepare(settings: dict[str, Any]):
  """Returns (facts, step, last), as `turns.serve` wants them."""
  config = config_of(settings)
  step = device.Step(config, device.batch_of(config))
  ceiling = device.matmul_flops(settings["dtype"], settings["ceiling"])
  facts = device.describe() | step.facts | {"matmul_tflops": round(ceiling / 1e12, 4)}

  def last() -> dict[str, Any]:
    return {"loss": round(float(step.metrics["loss"]), 4)} | device.peak_memory()

  return facts, step, last


if __name__ == "__main__":
  turns.serve(prepare)
