"""The plot of most claims: a figure of each arm and seed, and curves over training."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from tools import report_plots as plots

POINTS = 60  # of a committed curve


def thin(values: Any, digits: int = 4) -> list[float]:
  """Returns a curve [n] as at most POINTS means of its neighbours, rounded."""
  parts = np.array_split(np.asarray(values, np.float64), min(len(values), POINTS))
  return [round(float(part.mean()), digits) for part in parts]


@plots.styled
def draw(
  result: Mapping[str, Any],
  *,
  panels: Sequence[tuple[str, str]],
  curves: Sequence[tuple[str, str]] = (),
  chance: Mapping[str, float] | None = None,
) -> Figure:
  """Returns one row of axes.

  Args:
    result: of claim.collect.
    panels: (metric, title) each: points per seed, a bar at the mean.
    curves: (array, title) each: the mean over the seeds, over the share of training.
    chance: metric -> the value of an ignorant model, as a dotted line.
  """
  n = len(panels) + len(curves)
  fig, axes = plots.figure(1, n, (3.6 * n + 0.4, 3.7))
  colours = {
    arm: plots.PALETTE[i % len(plots.PALETTE)] for i, arm in enumerate(result["arms"])
  }
  for ax, (metric, title) in zip(axes[0], panels):
    points(ax, result, metric, colours)
    if metric in (chance or {}):
      ax.axhline((chance or {})[metric], color=plots.MUTED, ls=":", lw=1.2)
    ax.set_title(title)
  for ax, (name, title) in zip(axes[0, len(panels) :], curves):
    for arm, colour in colours.items():
      lines = [r["arrays"] for r in result["runs"] if r["arm"] == arm]
      if all(name in line for line in lines):
        mean = np.mean([line[name] for line in lines], axis=0)
        ax.plot(np.linspace(0, 1, len(mean)), mean, color=colour, label=arm)
    ax.set(title=title, xlabel="share of training")
    ax.legend()
  fig.suptitle(f"{result['title']}: {len(result['seeds'])} seeds", x=0.01, ha="left")
  return fig


def points(
  ax: Axes, result: Mapping[str, Any], metric: str, colours: Mapping[str, str]
) -> None:
  """Draws a metric of each seed as a point, and a bar at the mean of the arm."""
  for i, (arm, colour) in enumerate(colours.items()):
    runs = [r["figures"] for r in result["runs"] if r["arm"] == arm]
    values = [r[metric] for r in runs if metric in r]
    if values:
      x = i + np.linspace(-0.12, 0.12, len(values))
      ax.plot(x, values, "o", color=colour, ms=4, alpha=0.7)
      ax.hlines(np.mean(values), i - 0.32, i + 0.32, color=colour)
  ax.set_xticks(range(len(colours)), list(colours), rotation=30, ha="right")
  ax.set_xlim(-0.6, len(colours) - 0.4)
