"""The report's picture grids: queries and the five items that each found nearest."""

from collections.abc import Mapping
import io
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
import numpy as np
from PIL import Image

from tools.report_plots import INK, MUTED, figure, styled

RIGHT, WRONG = "#007A5A", "#C4CAD0"
ROWS = 10
Box = tuple[float, float, float, float]  # x, y, width, height in inches


def decode(data: bytes, side: int = 144) -> Image.Image:
  """Returns an encoded image on white, no larger than side x side."""
  with Image.open(io.BytesIO(data)) as image:
    rgba = image.convert("RGBA")
  white = Image.new("RGBA", rgba.size, "white")
  white.alpha_composite(rgba)
  out = white.convert("RGB")
  out.thumbnail((side, side))
  return out


def caption(example: Mapping[str, Any]) -> str:
  """Returns the example's first English caption, else the first of any language."""
  captions = example.get("captions", example.get("text", ""))
  if isinstance(captions, Mapping):
    captions = captions.get("en") or next(iter(captions.values()), "")
  if isinstance(captions, list | tuple):
    captions = captions[0] if captions else ""
  return captions.decode() if isinstance(captions, bytes) else str(captions)


def picked(count: int, rows: int = ROWS) -> np.ndarray:
  """Returns positions of the queries to show: random, always the same, not the best."""
  order = np.random.default_rng(0).permutation(count)
  return np.sort(order[:rows])


@styled
def grid(
  artifact: Mapping[str, np.ndarray], way: str, source: Any, rows: int = ROWS
) -> Figure:
  """Draws queries on the left and their nearest items, the right ones marked.

  Args:
    artifact: of the retrieval evaluator.
    way: "i2t" or "t2i".
    source: raw examples, by the artifact's index.
    rows: queries to show.
  """
  # Where one image stands for several rows, queries are fewer than rows.
  queries = artifact.get(f"{way}_query", artifact["index"])
  at = picked(len(queries), rows)
  columns = artifact[f"{way}_top"].shape[1]
  draw_query, draw_item = (_image, _text) if way == "i2t" else (_text, _image)
  width = 10.5 / (columns + 1)  # inches of a cell
  height = 0.82 if way == "i2t" else 1.15
  size = (10.5, 0.3 + height * len(at))
  # One set of axes in inches: sixty of them take a minute to lay out.
  fig, axes = figure(1, 1, size)
  fig.set_layout_engine("none")
  axes = axes[0, 0]
  axes.set_position((0, 0, 1, 1))
  for row, i in enumerate(at):
    y = row * height
    query = source[int(queries[i])]
    draw_query(axes, query, (0.0, y, width, height), None)
    for j in range(columns):
      box = ((j + 1) * width, y, width, height)
      item = source[int(artifact[f"{way}_top"][i, j])]
      draw_item(axes, item, box, bool(artifact[f"{way}_correct"][i, j]))
  for j in range(columns + 1):
    axes.text(
      (j + 0.5) * width, -0.14, str(j) if j else "Query", ha="center", va="center",
      color=MUTED,
    )  # fmt: skip
  axes.set(xlim=(0, size[0]), ylim=(height * len(at), -0.3))
  axes.set_axis_off()
  return fig


def _mark(axes: Axes, box: Box, right: bool | None, fill: str) -> None:
  if right is None:
    return
  x, y, width, height = box
  gap = 0.05
  axes.add_patch(
    FancyBboxPatch(
      (x + gap, y + gap),
      width - 2 * gap,
      height - 2 * gap,
      boxstyle="round,pad=0,rounding_size=0.07",
      edgecolor=RIGHT if right else WRONG,
      facecolor=fill,
      linewidth=2.4 if right else 0.8,
      zorder=0.5,
    )
  )
  if right:  # not by colour alone
    axes.text(
      x + width - 0.11, y + 0.09, "\u2713", color=RIGHT, ha="right", va="top",
      fontsize=11, weight="bold", zorder=3,
    )  # fmt: skip


def _image(
  axes: Axes, example: Mapping[str, Any], box: Box, right: bool | None
) -> None:
  _mark(axes, box, right, "white")
  picture = decode(example["image_bytes"])
  x, y, width, height = box
  scale = (height - 0.26) / max(picture.size)
  half = picture.width * scale / 2, picture.height * scale / 2
  middle = x + width / 2, y + height / 2
  extent = (
    middle[0] - half[0], middle[0] + half[0], middle[1] + half[1], middle[1] - half[1]
  )  # fmt: skip
  axes.imshow(np.asarray(picture), extent=extent, aspect="auto", zorder=1)


def _text(axes: Axes, example: Mapping[str, Any], box: Box, right: bool | None) -> None:
  _mark(axes, box, right, "#E6F4EF" if right else "#F7F8FA")
  x, y, width, height = box
  axes.text(
    x + width / 2, y + height / 2, wrap(caption(example)), ha="center", va="center",
    fontsize=8.5, color=INK, weight="bold" if right is None else "normal",
    linespacing=1.15, parse_math=False, zorder=2,
  )  # fmt: skip


def wrap(text: str, width: int = 19, lines: int = 3) -> str:
  """Returns text in at most so many lines, cut with an ellipsis."""
  out = textwrap.wrap(text, width)
  if len(out) > lines:
    out = [*out[: lines - 1], out[lines - 1][: width - 1].rstrip() + "\u2026"]
  return "\n".join(out)


def grids(artifact: Mapping[str, np.ndarray], source: Any) -> dict[str, Figure]:
  """Returns direction -> picture grid; {} where the source has no pictures."""
  ways = [k.removesuffix("_top") for k in artifact if k in ("i2t_top", "t2i_top")]
  if not ways or "image_bytes" not in source[int(artifact["index"][0])]:
    return {}
  return {way: grid(artifact, way, source) for way in ways}
