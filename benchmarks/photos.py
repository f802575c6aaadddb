"""Pictures that weigh what photographs do, with captions, in three formats.

No photographs are shipped: these have the spectrum of natural images (power falls with
the square of the frequency), shapes with hard edges, and grain, so that a JPEG of them
takes about as many bytes, and as long to decode, as one of a photograph.
"""

from collections.abc import Iterator
import io
import json
import pathlib
import tarfile
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import tokenizer
from input_pipeline.sources import arrayrecord

SHAPES = ((3, 4), (4, 3), (2, 3), (1, 1))  # height to width, in turn
SHARDS = 4
WORDS = (
  *("a", "the", "of", "on", "under", "red", "green", "blue", "small", "old", "bright"),
  *("cat", "dog", "tree", "house", "bird", "fish", "table", "street", "river", "child"),
)


def photo(index: int, side: int, seed: int = 0) -> Image.Image:
  """Returns the picture of an index; its longer side has `side` pixels."""
  rng = np.random.default_rng((seed, index))
  tall, wide = SHAPES[index % len(SHAPES)]
  height, width = (round(side * s / max(tall, wide)) for s in (tall, wide))
  down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  frequency = np.hypot(down, right)
  frequency[0, 0] = 1 / side
  # Three bands that share most of what they show, as colours do.
  noise = rng.standard_normal((4, *frequency.shape, 2)) @ np.array([1, 1j])
  bands = np.fft.irfft2(noise / frequency**1.25, (height, width))
  bands /= bands.std((1, 2), keepdims=True)
  pixels = 118 + 45 * bands[0][..., None] + 18 * np.moveaxis(bands[1:], 0, -1)
  y, x = np.mgrid[:height, :width]
  for _ in range(6):
    at, reach = rng.random(2), rng.uniform(0.05, 0.3, 2)
    distance = ((y / height - at[0]) / reach[0]) ** 2 + (
      (x / width - at[1]) / reach[1]
    ) ** 2
    pixels[distance < 1] = (pixels[distance < 1] + rng.uniform(0, 255, 3)) / 2
  pixels += rng.normal(0, 3, (height, width, 1))
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def pairs(count: int, side: int, quality: int, seed: int = 0) -> Iterator[dict]:
  """Yields examples: `image_bytes` (JPEG), `captions` of 5 to 15 words, `id`."""
  for i in range(count):
    file = io.BytesIO()
    photo(i, side, seed).save(file, "JPEG", quality=quality)
    rng = np.random.default_rng((seed, i, 1))
    caption = " ".join(rng.choice(WORDS, rng.integers(5, 16)))
    yield {"image_bytes": file.getvalue(), "captions": caption, "id": i}


def write(
  folder: pathlib.Path, count: int, side: int, quality: int, vocab: int
) -> dict[str, Any]:
  """Writes the same pairs as ArrayRecord, tar shards, and files with JSON-lines.

  A tokenizer of their captions, tokenizer.model, lies beside them.

  Returns:
    What they are, for the report.
  """
  made = list(pairs(count, side, quality))
  arrayrecord.write_records(str(folder / "train.arrayrecord"), made, shards=SHARDS)
  captions = (pair["captions"] for pair in made)
  tokenizer.train_tokenizer(captions, str(folder / "tokenizer.model"), vocab)
  (folder / "files").mkdir()
  lines = []
  for i, pair in enumerate(made):
    (folder / "files" / f"{i:06d}.jpg").write_bytes(pair["image_bytes"])
    line = {"image": f"files/{i:06d}.jpg", "caption": pair["captions"]}
    lines.append(json.dumps(line))
  (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
  for shard in range(SHARDS):
    with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
      for i, pair in list(enumerate(made))[shard::SHARDS]:
        members = (("jpg", pair["image_bytes"]), ("txt", pair["captions"].encode()))
        for extension, data in members:
          info = tarfile.TarInfo(f"{i:06d}.{extension}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  sizes = [len(pair["image_bytes"]) for pair in made]
  return dict(
    examples=count,
    longer_side=side,
    jpeg_quality=quality,
    kilobytes_mean=round(sum(sizes) / len(sizes) / 1e3, 1),
    kilobytes_min=round(min(sizes) / 1e3, 1),
    kilobytes_max=round(max(sizes) / 1e3, 1),
  )
