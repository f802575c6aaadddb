"""Our side of benchmarks.input: the training loader of configs/web_pairs.py.

One step is a batch, handed to the device and made floats there: that is counted, too.
"""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from benchmarks import turns
from configs import base, web_pairs
from input_pipeline import images, pipeline
from input_pipeline.transforms import flip
from sharding import mesh as meshes
from sharding import placement

PACKAGES = ("jax", "grain", "Pillow", "simplejpeg", "cykooz-resizer", "sentencepiece")
SOURCES = {
  "arrayrecord": dict(paths="{folder}/train.arrayrecord*"),
  "webdataset": dict(paths="{folder}/train-*.tar"),
  "jsonl": dict(paths="{folder}/train.jsonl"),
}


def config_of(settings: dict[str, Any]) -> ConfigDict:
  """Returns the config of the recipe with the benchmark's data and sizes."""
  c = base.get_config()
  c.batch_size = settings["batch"]
  size = settings["size"]
  c.model.modalities.image.size = (size, size, 3)
  text = dict(vocab=settings["vocab"], length=settings["length"])
  c.model.modalities.text.update(text)
  web_pairs.set_data(c, ConfigDict(web_pairs.ARGS))
  folder, c.data.source = settings["folder"], settings["source"]
  options = SOURCES[c.data.source]
  c.data.options = {k: v.format(folder=folder) for k, v in options.items()}
  c.data.tokenizer = f"{folder}/tokenizer.model"
  c.data.update(
    dict(threads=settings["loader_threads"], workers=settings["workers"], prefetch=2)
  )
  c.data.transforms = tuple(
    (name, dict(o, scale=tuple(settings["scale"])) if "crop" in name else o)
    for name, o in c.data.transforms
  )
  return c


def without(config: ConfigDict, measures: list[str]) -> None:
  """Takes measures back, to see what each is worth: see `REVERTED`."""
  for name in measures:
    REVERTED[name](config)


def _decode_first(c: ConfigDict) -> None:
  c.data.transforms = (("decode_image", {}), *c.data.transforms)


def _host_floats(c: ConfigDict) -> None:
  c.data.transforms = tuple(
    (name, dict(o, device=False) if name == "normalize" else o)
    for name, o in c.data.transforms
  )


def _pillow(c: ConfigDict) -> None:
  def resized(image, size, box, method):
    how = getattr(Image.Resampling, method.upper())
    return np.asarray(Image.fromarray(image).resize(size[::-1], how, box=box))

  images.resized = resized


def _flipped_view(c: ConfigDict) -> None:
  def flipped(self, example, rng):
    if rng.random() >= self.p:
      return example
    return example | {"image": example["image"][:, ::-1]}

  flip.Transform.__call__ = flipped  # type: ignore[method-assign]


def _pillow_decodes(c: ConfigDict) -> None:
  images._sound_jpeg = lambda *args: None


REVERTED: dict[str, Callable[[ConfigDict], None]] = {
  "arrays from JPEGs": _pillow_decodes,
  "box before decoding": _decode_first,
  "vector resampling": _pillow,
  "bytes to the device": _host_floats,
  "flip by channels": _flipped_view,
}


def prepare(settings: dict[str, Any]):
  """Returns (facts, step, last), as `turns.serve` wants them."""
  config = config_of(settings)
  without(config, settings["without"])
  config = pipeline.prepare(config, settings["folder"])
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  mesh = meshes.make({}, jax.devices()[:1])

  def step() -> Callable[[], Any]:
    batch = placement.put_batch(next(loader), mesh)
    return lambda: jax.block_until_ready(batch)

  batch = placement.put_batch(next(loader), mesh)
  image = batch["image"]
  assert image.shape == (settings["batch"], *config.model.modalities.image.size)
  facts = dict(
    versions=turns.versions(PACKAGES),
    image=f"{image.dtype}{list(image.shape)}",
    mean=round(float(image.mean()), 3),
    std=round(float(image.std()), 3),
  )
  return facts, step, dict


if __name__ == "__main__":
  turns.serve(prepare)
