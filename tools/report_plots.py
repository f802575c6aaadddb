"""The report's figures: one style, colours that colour-blind readers tell apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from tools.report_data import Run

# Okabe and Ito's palette, darkest contrasts first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
INK, MUTED, GRID = "#1B1F24", "#59636E", "#E3E7EB"
DASHES = ("-", "--", "-.", ":")
STYLE: Any = {
  "font.family": "DejaVu Sans",
  "font.size": 10,
  "axes.edgecolor": "#C4CAD0",
  "axes.labelcolor": MUTED,
  "axes.titlecolor": INK,
  "axes.titlesize": 11,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "legend.framealpha": 0.85,
  "legend.edgecolor": "none",
  "legend.facecolor": "white",
  "legend.fontsize": 9,
  "lines.linewidth": 1.8,
  "figure.constrained_layout.use": True,
  "figure.dpi": 140,
}


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
  """Returns a figure of the report's style and its axes [rows, columns]."""
  with matplotlib.rc_context(STYLE):
    fig = Figure(figsize=size)  # not pyplot's: a notebook would show those twice
    return fig, fig.subplots(rows, columns, squeeze=False)


def styled(draw):
  """Wraps a drawing function, so that what it adds follows the style too."""

  def wrapped(*args, **kwargs):
    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  wrapped.__doc__ = draw.__doc__
  return wrapped


def smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
  """Returns a running mean over a share of the curve; its ends are shorter means."""
  width = max(int(len(values) * share), 1)
  kernel = np.ones(2 * width + 1)
  weight = np.convolve(np.ones(len(values)), kernel, "same")
  return np.convolve(values, kernel, "same") / weight


def curve(
  axes: Axes,
  run: Run,
  key: str,
  label: str,
  i: int = 0,
  dash: str = "",
  noisy: bool = True,
) -> bool:
  """Draws one metric over steps; False if absent.

  A noisy one is faint, under its running mean. `i` chooses colour and dash.
  """
  steps, values = run.series(key)
  if not len(steps):
    return False
  axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
  color = PALETTE[i % len(PALETTE)]
  dash = dash or DASHES[i // len(PALETTE) % len(DASHES)]
  if noisy and len(steps) > 50:
    axes.plot(steps, values, color=color, alpha=0.22, linewidth=1)
    values = smooth(values)
  marker = "o" if len(steps) <= 12 else None
  axes.plot(
    steps, values, color=color, label=label, linestyle=dash, marker=marker, markersize=4
  )
  return True


def absent(axes: Axes) -> None:
  """Says that there is nothing to see, instead of an empty frame."""
  axes.text(
    0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes,
    color=MUTED,
  )  # fmt: skip
  axes.set(xticks=[], yticks=[])
  axes.grid(False)


@styled
def losses(run: Run) -> Figure | None:
  """Training loss, auxiliary losses, gradient norm, learning rate and temperature."""
  if not len(run.series("loss")[0]):
    return None
  fig, grid = figure(2, 2, (10.5, 6.4))
  (total, extra), (norm, rate) = grid
  parts = [k for k in run.keys if k.startswith("losses/")]
  main = [k for k in parts if "moe" not in k]
  curve(total, run, "loss", "total")
  for i, key in enumerate(main):
    curve(total, run, key, key.partition("/")[2], i + 1)
  total.set_title("Training loss")
  total.legend()
  drawn = [
    curve(extra, run, key, key.removeprefix("losses/").removeprefix("moe_"), i)
    for i, key in enumerate(k for k in parts if k not in main)
  ]
  extra.set_title("Auxiliary losses of the experts, weighted")
  if any(drawn):
    low, high = extra.get_ylim()
    rows = -(-len(drawn) // 2)
    extra.set_ylim(low, high + 0.14 * rows * (high - low))  # room for the names
    extra.legend(ncols=2, loc="upper left")
  else:
    absent(extra)
  if curve(norm, run, "grad_norm", "gradient norm"):
    norm.set_yscale("log")
    plain = matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}")
    norm.yaxis.set_major_formatter(plain)
    norm.yaxis.set_minor_formatter(plain)
  else:
    absent(norm)
  norm.set_title("Gradient norm, before clipping")
  _rate(rate, run)
  for axes in (norm, rate):
    axes.set_xlabel("step")
  return fig


def _rate(axes: Axes, run: Run) -> None:
  drawn = curve(axes, run, "lr", "learning rate", noisy=False)
  axes.set_title("Learning rate")
  if not drawn:
    return absent(axes)
  axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
  key = next((k for k in run.keys if k.rpartition("/")[2] == "temperature"), None)
  if key is None:
    return None
  axes.set_title("Learning rate and temperature")
  twin = axes.twinx()
  curve(twin, run, key, "temperature (right)", 1, noisy=False)
  twin.grid(False)
  twin.tick_params(axis="y", colors=PALETTE[1])
  lines = axes.get_lines() + twin.get_lines()
  lines = [line for line in lines if not str(line.get_label()).startswith("_")]
  axes.legend(lines, [str(line.get_label()) for line in lines],
              loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # fmt: skip
  return None


@styled
def retrieval(
  run: Run, name: str, ways: Sequence[str], floor: Mapping
) -> Figure | None:
  """Recall over steps, in each direction, with the floors as lines."""
  ways = list(ways)[:2]
  if not ways:
    return None
  fig, grid = figure(1, len(ways), (5.25 * len(ways), 3.6))
  for axes, way in zip(grid[0], ways):
    for i, k in enumerate((10, 5, 1)):
      key = f"eval/{name}/{way}_r{k}"
      curve(axes, run, key, f"R@{k}", i)
    reference = floor.get(f"{way}_r10")
    if reference is not None:
      label = f"floor, R@10 {reference:.3f}"
      axes.axhline(
        reference, color=PALETTE[0], linestyle="--", linewidth=1.2, label=label
      )
    chance = run.last(f"eval/{name}/{way}_chance_r10")
    if chance is not None:
      label = f"chance, R@10 {chance:.3f}"
      axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.2, label=label)
    axes.set(title=words(way), xlabel="step", ylim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
  return fig


def words(way: str) -> str:
  """Returns "image to text" for "i2t"; a longer direction spelt with its own words."""
  names = {"i": "image", "t": "text", "a": "audio", "v": "video"}
  a, _, b = way.partition("2")
  return f"{names.get(a, a)} to {names.get(b, b)}".capitalize()


@styled
def per_class(artifact: Mapping[str, np.ndarray], chance: float) -> Figure:
  """Accuracy of each class as bars, the best on top, with its number of examples."""
  seen = np.flatnonzero(artifact["support"] > 0)
  order = seen[np.argsort(-artifact["accuracy"][seen], kind="stable")]
  columns = 2 if len(order) > 24 else 1
  rows = -(-len(order) // columns)
  fig, grid = figure(1, columns, (10.5, 0.9 + 0.22 * max(rows, 3)))
  for j, axes in enumerate(grid[0]):
    part = order[j * rows : (j + 1) * rows]
    y = np.arange(len(part))
    values = artifact["accuracy"][part]
    axes.barh(y, values, color=PALETTE[0], height=0.72)
    for at, value in zip(y, values):
      axes.text(
        max(value, chance) + 0.012, at, f"{value:.2f}", va="center", fontsize=8,
        color=MUTED,
      )  # fmt: skip
    axes.axvline(chance, color=PALETTE[1], linestyle="--", linewidth=1.2)
    axes.text(chance + 0.012, -0.8, "chance", color=PALETTE[1], fontsize=8, va="center")
    names = [f"{artifact['classes'][i]}  ({artifact['support'][i]})" for i in part]
    axes.set_yticks(y, names, fontsize=8, color=INK)
    axes.set(xlim=(0, 1.1), ylim=(rows - 0.4, -1.2), xlabel="accuracy")
    axes.grid(axis="y", visible=False)
  return fig


@styled
def throughput(run: Run) -> Figure | None:
  """Examples per second, and the share of time spent waiting for data."""
  if not len(run.series("examples_per_s")[0]):
    return None
  fig, grid = figure(1, 2, (10.5, 2.9))
  speed, wait = grid[0]
  curve(speed, run, "examples_per_s", "examples/s")
  speed.set(title="Examples per second", xlabel="step", ylim=(0, None))
  if curve(wait, run, "data_wait", "waiting", 1):
    wait.set(ylim=(0, 1))
    wait.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    wait.set_xlabel("step")
  else:
    absent(wait)
  wait.set_title("Time spent waiting for data")
  return fig
