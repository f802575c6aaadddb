"""The peers of benchmarks.input: a PyTorch DataLoader over files, and plain webdataset.

`settings["peer"]` is one of
  torch: torchvision's transforms of Pillow images, as open_clip and timm use them
  torch_v2: transforms.v2 of uint8 tensors, whose resize has vector instructions
  webdataset: tar shards, decoded by its "pilrgb", and the transforms of `torch`
All three tokenize by the sentencepiece model that ours uses. Packages:
requirements-bench.txt.
"""

from collections.abc import Callable, Iterator
import functools
import json
import pathlib
from typing import Any

from PIL import Image
import sentencepiece
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import turns
from benchmarks.contenders.vision import torchvision, v2
from input_pipeline.tokenizer import END

PACKAGES = ("torch", "torchvision", "webdataset", "Pillow")
MEAN = STD = (0.5, 0.5, 0.5)


def transform_of(settings: dict[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
  """Returns crop, resize, flip, floats and normalisation: f32[3, size, size]."""
  scale, size = tuple(settings["scale"]), settings["size"]
  if settings["peer"] == "torch_v2":
    return v2.Compose(
      [
        v2.PILToTensor(),
        v2.RandomResizedCrop(size, scale=scale, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
      ]
    )
  t = torchvision.transforms
  return t.Compose(
    [
      t.RandomResizedCrop(size, scale=scale),
      t.RandomHorizontalFlip(),
      t.ToTensor(),
      t.Normalize(MEAN, STD),
    ]
  )


class Tokenize:
  """Text to i64[length] of a sentencepiece model, ended and padded with 0."""

  def __init__(self, path: str, length: int):
    self.path, self.length = path, length

  @functools.cached_property
  def _model(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=self.path)

  def __getstate__(self) -> dict[str, Any]:
    return dict(path=self.path, length=self.length)

  def __call__(self, text: str) -> torch.Tensor:
    """Returns the ids."""
    ids = [*self._model.EncodeAsIds(text)[: self.length - 1], END]
    return torch.tensor(ids + [0] * (self.length - len(ids)))


class Files(Dataset):
  """Pairs of image files and captions, listed in a JSON-lines file."""

  def __init__(self, folder: str, transform: Callable, tokenize: Callable):
    self._folder = pathlib.Path(folder)
    lines = (self._folder / "train.jsonl").read_text().splitlines()
    self._pairs = [(p["image"], p["caption"]) for p in map(json.loads, lines)]
    self._transform, self._tokenize = transform, tokenize

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    path, caption = self._pairs[index]
    with Image.open(self._folder / path) as image:
      return self._transform(image.convert("RGB")), self._tokenize(caption)


def batches(settings: dict[str, Any]) -> Iterator[list[torch.Tensor]]:
  """Yields (images, ids) without end."""
  transform = transform_of(settings)
  tokenize = Tokenize(f"{settings['folder']}/tokenizer.model", settings["length"])
  workers, batch = settings["workers"], settings["batch"]
  if settings["peer"] == "webdataset":
    import webdataset

    shards = sorted(map(str, pathlib.Path(settings["folder"]).glob("train-*.tar")))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0)
    data = data.shuffle(1000).decode("pilrgb").to_tuple("jpg", "txt")
    data = data.map_tuple(transform, tokenize).batched(batch, partial=False).repeat()
    if workers:
      data = webdataset.WebLoader(data, batch_size=None, num_workers=workers)
    yield from data
  data = Files(settings["folder"], transform, tokenize)
  more = dict(persistent_workers=True) if workers else {}
  loader = DataLoader(
    data, batch, shuffle=True, drop_last=True, num_workers=workers, **more
  )
  while True:
    yield from loader


def prepare(settings: dict[str, Any]):
  """Returns (facts, step, last), as `turns.serve` wants them."""
  torch.set_num_threads(1)  # as in a DataLoader's workers
  torch.manual_seed(0)
  stream = batches(settings)
  image = next(stream)[0]
  assert tuple(image.shape[2:]) == (settings["size"],) * 2

  def step() -> Callable[[], Any]:
    next(stream)
    return lambda: None

  facts = dict(
    versions=turns.versions(PACKAGES),
    image=f"{str(image.dtype).removeprefix('torch.')}{list(image.shape)}",
    mean=round(float(image.mean()), 3),
    std=round(float(image.std()), 3),
  )
  return facts, step, dict


if __name__ == "__main__":
  turns.serve(prepare)
