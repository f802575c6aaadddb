"""The report's figures about the sparse layers."""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from tools.report_data import Run
from tools.report_plots import (
  DASHES,
  INK,
  MUTED,
  PALETTE,
  absent,
  curve,
  figure,
  styled,
)

COLOURS = "cividis"
HEAD = "metrics/moe/"


def loads(run: Run) -> dict[tuple[str, str], np.ndarray]:
  """Returns (layer, modality) -> f[e], of the evaluated split, else the last step."""
  for artifact in run.kind("routing").values():
    if "load" in artifact:
      return {
        (str(layer), str(m)): artifact["load"][i, j]
        for i, layer in enumerate(artifact["layers"])
        for j, m in enumerate(artifact["modalities"])
      }
  found = {at: run.series(key)[1] for at, key in run.routing("load").items()}
  return {at: values[-1] for at, values in found.items() if values.ndim == 2}


@styled
def final(run: Run) -> Figure | None:
  """Heatmap expert x modality for each sparse layer: share of the modality's tokens."""
  found = loads(run)
  if not found:
    return None
  layers = sorted({layer for layer, _ in found})
  modalities = sorted({m for _, m in found})
  experts = len(next(iter(found.values())))
  height = 0.75 + (0.5 * len(modalities) + 0.55) * len(layers)
  fig, grid = figure(len(layers), 1, (10.5, height))
  top = max(np.nanmax(v) for v in found.values())
  for axes, layer in zip(grid[:, 0], layers):
    none = np.full(experts, np.nan)
    values = np.stack([found.get((layer, m), none) for m in modalities])
    picture = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=top, aspect="auto")
    if experts <= 16:
      for (y, x), v in np.ndenumerate(values):
        ink = "white" if v < 0.6 * top else INK
        axes.text(x, y, f"{v:.2f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_title(spoken(layer))
    axes.set_yticks(range(len(modalities)), modalities, color=INK)
    ticks = range(0, experts, max(1, experts // 16))
    axes.set_xticks(ticks, ticks if layer == layers[-1] else [])
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
  grid[-1, 0].set_xlabel("expert")
  bar = fig.colorbar(picture, ax=grid[:, 0].tolist(), fraction=0.03, pad=0.015)
  bar.set_label("share of the modality's tokens", color=MUTED, fontsize=9)
  bar.outline.set_visible(False)
  return fig


@styled
def over_time(run: Run) -> Figure | None:
  """The same shares over the training steps, one image per layer and modality."""
  found = {at: run.series(key) for at, key in run.routing("load").items()}
  found = {at: s for at, s in found.items() if s[1].ndim == 2 and len(s[0]) > 1}
  if not found:
    return None
  layers = sorted({layer for layer, _ in found})
  modalities = sorted({m for _, m in found})
  shape = (len(layers), len(modalities))
  fig, grid = figure(*shape, (10.5, 0.6 + 1.75 * len(layers)))
  top = max(np.nanmax(values) for _, values in found.values())
  for i, layer in enumerate(layers):
    for j, m in enumerate(modalities):
      axes = grid[i, j]
      axes.grid(False)
      axes.set_title(f"{spoken(layer)}, {m}")
      if (layer, m) not in found:
        axes.set_axis_off()
        continue
      steps, values = found[layer, m]
      extent = (steps[0], steps[-1], values.shape[1] - 0.5, -0.5)
      picture = axes.imshow(
        values.T, cmap=COLOURS, vmin=0, vmax=top, aspect="auto", extent=extent,
        interpolation="nearest",
      )  # fmt: skip
      axes.set_ylabel("expert" if j == 0 else "")
      axes.set_xlabel("step" if i == len(layers) - 1 else "")
  bar = fig.colorbar(picture, ax=grid.ravel().tolist(), fraction=0.03, pad=0.015)
  bar.set_label("share of tokens", color=MUTED, fontsize=9)
  bar.outline.set_visible(False)
  return fig


@styled
def experts_over_time(run: Run) -> Figure | None:
  """Effective experts with the thresholds of the config, and dropped tokens."""
  effective, served = run.routing("effective_experts"), run.routing("served")
  if not effective and not served:
    return None
  modalities = sorted({m for _, m in (*effective, *served)})
  layers = sorted({layer for layer, _ in (*effective, *served)})
  wanted: Mapping = run.get("model.moe.min_experts", {}) or {}
  fig, grid = figure(2, len(modalities), (5.25 * len(modalities), 5.6))
  experts = run.get("model.moe.experts")
  for j, m in enumerate(modalities):
    above, below = grid[:, j]
    for i, layer in enumerate(layers):
      dash = DASHES[i % len(DASHES)]  # layers often lie on each other
      if (layer, m) in effective:
        curve(above, run, effective[layer, m], spoken(layer), i, dash)
      if (layer, m) in served:
        steps, values = run.series(served[layer, m])
        color = PALETTE[i % len(PALETTE)]
        below.plot(steps, 100 * (1 - values), color=color, linestyle=dash)
    if m in wanted and run.get(f"model.moe.losses.global_entropy.{m}"):
      above.axhline(wanted[m], color=MUTED, linestyle="--", linewidth=1.2)
      above.annotate(
        f"threshold {wanted[m]:g}", (0.99, wanted[m]), (0, -3), color=MUTED,
        xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=9,
        ha="right", va="top",
      )  # fmt: skip
    _floor(above, run, f"effective_experts.{m}")
    _floor(below, run, f"served.{m}", lambda v: 100 * (1 - v))
    above.set(title=f"Effective experts, {m}", ylim=(0, (experts or 0) * 1.08 or None))
    below.set(title=f"Dropped tokens, {m} (%)", xlabel="step")
    below.set_ylim(0, max(below.get_ylim()[1], 1.0))
    if j == len(modalities) - 1:
      above.legend(loc="lower right", ncols=2)
  return fig


def _floor(
  axes: Axes, run: Run, key: str, of: Callable[[float], float] = float
) -> None:
  """Draws a floor of the config, where it is within the picture."""
  floor = run.get(f"model.moe.warn.{key}")
  if floor is not None and of(floor) <= axes.get_ylim()[1]:
    axes.axhline(of(floor), color=MUTED, linestyle=":", linewidth=1.2)


@styled
def router_over_time(run: Run) -> Figure | None:
  """Token entropy by modality; dead experts and the largest logit of each layer."""
  entropy = run.routing("token_entropy")
  pooled = {
    what: [k for k in run.keys if k.startswith(HEAD) and f"/{what}" in k]
    for what in ("dead_experts", "router_logit_scale")
  }
  if not entropy and not any(pooled.values()):
    return None
  fig, grid = figure(1, 3, (10.5, 3.2))
  left, middle, right = grid[0]
  layers = sorted({layer for layer, _ in entropy})
  modalities = sorted({m for _, m in entropy})
  for (layer, m), key in sorted(entropy.items()):
    i, dash = modalities.index(m), DASHES[layers.index(layer) % len(DASHES)]
    curve(left, run, key, f"{spoken(layer)}, {m}", i, dash)
  titles = "Dead experts", "Largest router logit"
  for axes, title, keys in zip((middle, right), titles, pooled.values()):
    for i, key in enumerate(keys):
      layer, _, what = key.removeprefix(HEAD).partition("/")
      of = what.partition("/")[2]  # the modality of a trunk of its own
      label = spoken(layer) + (f", {of}" if of else "")
      curve(axes, run, key, label, i, noisy=title != titles[0])
    axes.set_title(title)
  left.set_title("Token entropy (nats)")
  for axes in grid[0]:
    if axes.get_lines():
      axes.set(xlabel="step", ylim=(0, None))
      axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    else:
      absent(axes)
  return fig


def spoken(layer: str) -> str:
  """Returns "Layer 3" for "layer03"."""
  return f"Layer {int(layer.removeprefix('layer'))}"
