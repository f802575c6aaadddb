"""What a JPEG's decode at reduced size, and the resampling, do to the pixels.

python -m benchmarks.jpeg_quality --out benchmarks/results/jpeg_quality.json

A box is cut out of pictures (benchmarks/photos.py) and resized to 1 / s of it: once of
the whole picture decoded, once of the picture decoded at 1 / s, as training does. The
peak signal-to-noise ratio between the two stands beside what the JPEG itself costs.
"""

import argparse
from collections.abc import Sequence
import io
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import photos, turns
from input_pipeline import images

SCALES = (2, 4, 8)
PACKAGES = ("Pillow", "simplejpeg", "cykooz-resizer", "numpy")
METHOD = "bilinear"  # of random_resized_crop


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the ratio of two uint8 images, in decibels."""
  error = np.mean((a.astype(np.float64) - b) ** 2)
  return float(10 * np.log10(255**2 / error)) if error else float("inf")


def compared(picture: Image.Image, quality: int) -> dict[str, float]:
  """Returns what is compared -> decibels, for one picture."""
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=quality)
  data = file.getvalue()
  whole = images.picture(data).pixels()
  width, height = picture.size
  box = (0.07 * width, 0.05 * height, 0.96 * width, 0.93 * height)
  found = {}
  for scale in SCALES:
    size = (int((box[3] - box[1]) / scale), int((box[2] - box[0]) / scale))
    want = images.resized(whole, size, box, METHOD)
    small, inner = images.picture(data).region(box, size)
    assert small.shape[0] == -(-height // scale)
    found[f"1/{scale}"] = psnr(images.resized(small, size, inner, METHOD), want)
    original = images.resized(np.asarray(picture), size, box, METHOD)
    found[f"1/{scale}, of the JPEG"] = psnr(want, original)
    how, shape = Image.Resampling.BILINEAR, size[::-1]
    pillow = np.asarray(Image.fromarray(whole).resize(shape, how, box=box))
    found[f"1/{scale}, of the resampling"] = psnr(want, pillow)
  return found


def summed(found: Sequence[dict[str, float]]) -> dict[str, Any]:
  """Returns what is compared -> the spread over the pictures."""
  return {key: turns.spread([one[key] for one in found], 2) for key in found[0]}


def main(argv: list[str] | None = None) -> None:
  """Compares, prints, and writes JSON if asked to."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.jpeg_quality")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--examples", type=int, default=24)
  parser.add_argument("--side", type=int, default=1000)
  parser.add_argument("--quality", type=int, default=90)
  args = parser.parse_args(argv)
  many = (photos.photo(i, args.side) for i in range(args.examples))
  decibels = summed([compared(picture, args.quality) for picture in many])
  for name, spread in decibels.items():
    print(f"{name:24} {spread['median']:.1f} dB ({spread['min']:.1f} at least)")
  report = dict(
    command=turns.command("benchmarks.jpeg_quality", argv),
    device=turns.processor(),
    versions=turns.versions(PACKAGES),
    examples=args.examples,
    side=args.side,
    jpeg_quality=args.quality,
    decibels=decibels,
  )
  turns.write(args.out, report)


if __name__ == "__main__":
  main()
