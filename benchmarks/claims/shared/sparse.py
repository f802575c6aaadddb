"""A recipe run by the training loop, and what its router did: of the LIMoE claims.

Loads are f32[layer, modality, e]: choices that an expert served, per token of the
modality; modalities are in the order that a claim names them in, which for held-out
loads has to be the alphabet's.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from matplotlib.axes import Axes
from ml_collections import ConfigDict
import numpy as np

from training import loop
from training import metrics as metrics_lib

TAIL = 20  # logged steps at the end over which figures of training are averaged
HEAD = 3  # the same at the start
DEAD = 0.01  # of the mean load
OWN = 0.9  # share of an expert's load that makes it one modality's own
EVERY = 4  # logged steps between the points of the committed curves

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
  """What the loop wrote down.

  Attributes:
    finite: 1, or 0 where the loss ceased to be a number.
    steps: the logged steps of training.
    evaluation: of the end; {} where there was none.
    load: of the held-out split, or None without a sparse layer or an end.
  """

  finite: float
  steps: Sequence[Row]
  evaluation: Row
  load: np.ndarray | None

  def retrieval(self, pair: Sequence[str], metric: str) -> float:
    """Returns a metric of evaluators/retrieval.py, the mean of both directions."""
    ways = [f"{a[0]}2{b[0]}" for a, b in (tuple(pair), tuple(pair)[::-1])]
    found = [self.evaluation.get(f"eval/retrieval/{w}_{metric}", 0.0) for w in ways]
    return float(np.mean(found))

  @property
  def loss(self) -> float:
    """Returns the objective's loss at the end of training."""
    return float(np.mean([r["losses/objective"] for r in self.steps[-TAIL:]]))


def train(config: ConfigDict, workdir: str) -> Run:
  """Trains a recipe and reads what the loop wrote; one that diverges is no error."""
  finite = 1.0
  try:
    loop.run(config, workdir)
  except loop.NotFinite:
    finite = 0.0
  rows = metrics_lib.read(workdir)
  steps = [r for r in rows if "grad_norm" in r]
  evaluation = next((r for r in rows if "eval/retrieval/i2t_r10" in r), {})
  saved = pathlib.Path(workdir) / "artifacts" / "routing.npz"
  load = np.load(saved)["load"] if saved.exists() else None
  return Run(finite, steps, evaluation, load)


def routing(steps: Sequence[Row], modalities: Sequence[str]) -> dict[str, float]:
  """Returns the figures of the router at the end of training, over sparse layers.

  Served shares and effective experts are of the layer that has the least: means would
  hide a collapse.
  """
  figures = {}
  for m in modalities:
    for name in ("served", "effective_experts", "token_entropy"):
      figures[f"{name}_{m}"] = float(series(steps[-TAIL:], name, m).mean())
  first, last = (loads(part, modalities) for part in (steps[:HEAD], steps[-TAIL:]))
  start, end = own_experts(first, modalities), own_experts(last, modalities)
  figures |= {f"own_{m}": end[m] for m in modalities}
  figures["own_more"] = sum(end.values()) - sum(start.values())
  used = used_experts(last, modalities)
  return figures | {f"used_{m}": used[m] for m in modalities}


def arrays(run: Run, modalities: Sequence[str]) -> dict[str, list]:
  """Returns curves of the router and its loads, for the plot."""
  made = {}
  for m in modalities:
    for name in ("served", "effective_experts"):
      made[f"{name}_{m}"] = rounded(series(run.steps, name, m)[::EVERY])
  made["load_start"] = rounded(loads(run.steps[:HEAD], modalities))
  made["load"] = rounded(loads(run.steps[-TAIL:], modalities))
  return made | ({} if run.load is None else {"load_held_out": rounded(run.load)})


def used_experts(load: np.ndarray, modalities: Sequence[str]) -> dict[str, float]:
  """Returns modality -> exp H of where its tokens go, in the layer that has the least.

  Unlike effective experts, which are of the mean gate, flat gates do not raise it.
  """
  share = load / np.maximum(load.sum(axis=-1, keepdims=True), 1e-9)
  entropy = -np.sum(share * np.log(np.maximum(share, 1e-9)), axis=-1)
  return {m: float(np.exp(entropy[:, i].min())) for i, m in enumerate(modalities)}


def own_experts(load: np.ndarray, modalities: Sequence[str]) -> dict[str, float]:
  """Returns modality -> how many experts of the last layer are its own.

  An expert is one modality's own if OWN of its load is, where loads are per token of a
  modality, so that the more numerous one has no head start. Dead experts are nobody's.
  """
  last = np.asarray(load)[-1]
  total = last.sum(axis=0)
  live = total > DEAD * total.mean()
  share = last[:, live] / total[live]
  return {m: float((share[i] >= OWN).sum()) for i, m in enumerate(modalities)}


def series(steps: Sequence[Row], name: str, modality: str) -> np.ndarray:
  """Returns f32[steps]: a metric of the sparse layer in which it is least."""
  keys = [k for k in steps[0] if k.startswith("metrics/moe/layer")]
  keys = [k for k in keys if k.endswith(f"/{name}/{modality}")]
  return np.array([min(row[k] for k in keys) for row in steps])


def loads(steps: Sequence[Row], modalities: Sequence[str]) -> np.ndarray:
  """Returns the mean load over some logged steps."""
  layers = sorted(k.split("/")[2] for k in steps[0] if k.endswith("/load/text"))
  rows = [
    [[row[f"metrics/moe/{i}/load/{m}"] for m in modalities] for i in layers]
    for row in steps
  ]
  return np.mean(np.array(rows), axis=0)


def rounded(values: Any) -> list:
  """Returns nested lists of numbers that are short enough to be committed."""
  return np.round(np.asarray(values, np.float64), 4).tolist()


def curves(
  ax: Axes, result: Mapping[str, Any], name: str, colours: Mapping[str, str]
) -> None:
  """Draws the mean over the seeds of an array, over the steps, of the arms with it."""
  for arm, colour in colours.items():
    lines = [r["arrays"] for r in result["runs"] if r["arm"] == arm]
    if all(name in line for line in lines):
      n = min(len(line[name]) for line in lines)
      mean = np.mean([line[name][:n] for line in lines], axis=0)
      ax.plot(lines[0]["step"][:n], mean, color=colour, label=arm)
  ax.set_xlabel("step")


def matrix(
  ax: Axes, result: Mapping[str, Any], arm: str, modalities: Sequence[str]
) -> None:
  """Draws which modality each expert of the last layer serves, on held-out examples."""
  ended = (r for r in result["runs"] if "load_held_out" in r["arrays"])
  run = next((r for r in ended if r["arm"] == arm), None)
  if run is None:  # each of them diverged
    return
  load = np.array(run["arrays"]["load_held_out"])[-1]
  place = np.arange(len(modalities)) @ load / np.maximum(load.sum(axis=0), 1e-9)
  ax.imshow(load[:, np.argsort(place)], aspect="auto", cmap="Blues", vmin=0.0)
  ax.grid(False)
  ax.set_yticks(range(len(modalities)), modalities)
  ax.set_xlabel(f"experts, from {modalities[0]}'s to {modalities[-1]}'s")
  ax.set_title(f"{arm}: share of a modality's tokens (seed {run['seed']})")
