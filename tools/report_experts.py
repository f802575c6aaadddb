"""The report's view of what each expert likes: patches of images, words of texts.

From the routing evaluator's artifact; one of an older version has nothing to show.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from evaluators.favourites import grid
from input_pipeline import tokenizer
from tools import report_data as data
from tools.report_data import Run
from tools.report_html import Row
from tools.report_pictures import decode
from tools.report_plots import INK, figure, styled

TILE, GAP = 72, 8  # pixels of a tile and between two
SHOWN = 8  # words of an expert
EXPERTS = 32  # more would make a picture that nobody reads


def favourites(
  artifact: Mapping[str, np.ndarray], kind: str
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
  """Returns (layer, modality) -> arrays of `kind` "patches" or "words"; {} if old."""
  found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  for key in sorted(artifact):
    head, *rest = key.split("/")
    if head == kind and len(rest) == 3:
      layer, modality, what = rest
      found.setdefault((layer, modality), {})[what] = artifact[key]
  return found


def patches(run: Run) -> Iterator[tuple[str, str, Figure]]:
  """Yields (layer, modality, picture) wherever the data gives the images."""
  for name, artifact in run.kind("routing").items():
    found = favourites(artifact, "patches")
    source = None
    if found:
      source = data.open_source(run, run.split(name), run.source_options(name))
    for (layer, modality), arrays in found.items():
      shape = run.get(f"model.modalities.{modality}")
      shown = arrays["index"][arrays["index"] >= 0]
      if (
        source is None
        or not shape
        or not len(shown)
        or tuple(shape["size"][2:]) != (3,)
      ):
        continue
      if "image_bytes" in source[int(shown[0])]:
        yield layer, modality, patch_grid(arrays, source, grid(shape), crop(run))


@styled
def patch_grid(
  arrays: Mapping[str, np.ndarray], source: Any, shape: tuple[int, int], kept: float
) -> Figure:
  """Draws a row of patches for each expert: each framed, with its surroundings.

  Args:
    arrays: "index" and "position", int[e, r], -1 for none.
    source: raw examples, by index.
    shape: (rows, columns) of an image's patches.
    kept: as `seen`.
  """
  index, position = arrays["index"][:EXPERTS], arrays["position"][:EXPERTS]
  experts, keep = index.shape
  step = TILE + GAP
  canvas = np.full((experts * step, keep * step, 3), 255, np.uint8)
  for (e, r), i in np.ndenumerate(index):
    if i >= 0:
      picture = seen(decode(source[int(i)]["image_bytes"], 1024), kept)
      at = np.s_[e * step : e * step + TILE, r * step : r * step + TILE]
      canvas[at] = tile(picture, divmod(int(position[e, r]), shape[1]), shape)
  size = (10.5, 0.1 + 10.0 / keep * experts)
  fig, axes = figure(1, 1, size)
  axes = axes[0, 0]
  axes.imshow(canvas, interpolation="antialiased")
  middles = np.arange(experts) * step + TILE / 2
  axes.set_yticks(middles, [f"expert {e}" for e in range(experts)], color=INK)
  axes.set_xticks([])
  axes.tick_params(length=0)
  axes.grid(False)
  axes.spines[:].set_visible(False)
  return fig


def crop(run: Run) -> float:
  """Returns the share of the shorter side that evaluation keeps of an image, or 0."""
  steps = dict((s[0], s[1]) for s in run.get("data.eval_transforms", ()) or ())
  return float((steps.get("resize") or {}).get("crop", 0.0))


def seen(picture: Image.Image, kept: float) -> Image.Image:
  """Returns what the model sees of a picture; kept: as `crop` of the resize."""
  if not kept:
    return picture
  side = kept * min(picture.size)
  x, y = ((s - side) / 2 for s in picture.size)
  return picture.crop((round(x), round(y), round(x + side), round(y + side)))


def tile(
  picture: Image.Image, at: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
  """Returns u8[TILE, TILE, 3]: a patch, framed, and half a patch around it.

  Args:
    picture: what the model sees.
    at: (row, column) of the patch.
    shape: (rows, columns) of the picture's patches.
  """
  (row, column), (rows, columns) = at, shape
  height, width = picture.height / rows, picture.width / columns
  x, y = (column - 0.5) * width, (row - 0.5) * height
  box = (round(x), round(y), round(x + 2 * width), round(y + 2 * height))
  # Beyond the picture `crop` is black: paste it on grey first.
  around = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "#D0D5DA")
  around.paste(picture, (-box[0], -box[1]))
  out = np.array(around.resize((TILE, TILE), Image.Resampling.LANCZOS))
  a, b = TILE // 4 - 1, TILE - TILE // 4
  frame = np.zeros((TILE, TILE), bool)
  frame[a : b + 1, a : b + 1] = True
  frame[a + 2 : b - 1, a + 2 : b - 1] = False
  out[frame] = (213, 94, 0)
  return out


def words(run: Run) -> Iterator[tuple[str, str, Sequence[str], list[Row]]]:
  """Yields (layer, modality, head, rows) of the tables of words."""
  for artifact in run.kind("routing").values():
    found = favourites(artifact, "words")
    spell = speller(run) if found else str
    for (layer, modality), arrays in found.items():
      shown = min(SHOWN, arrays["id"].shape[1])
      rows = []
      for e, ids in enumerate(arrays["id"][:, :shown]):
        cells = [
          f"{spell(int(w))} {arrays['lift'][e, r]:.1f}x" if w >= 0 else "-"
          for r, w in enumerate(ids)
        ]
        rows.append(Row(f"expert {e}", cells))
      yield layer, modality, ["", *(str(r + 1) for r in range(shown))], rows


def speller(run: Run) -> Callable[[int], str]:
  """Returns id -> piece, by the run's tokenizer; "#id" where it is gone."""
  path = run.path / "tokenizer.model"  # the workdir may have moved
  named = str(run.get("data.tokenizer", "")).replace("{workdir}", str(run.path))
  file = str(path) if path.exists() else named
  try:
    return tokenizer.load(file, run.get("model.modalities.text.vocab")).piece
  except (FileNotFoundError, ValueError) as e:
    print(f"report: words are shown by number: {e}")
    return "#{}".format
