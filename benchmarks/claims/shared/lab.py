"""Tiny towers trained by the real training step: a run takes seconds on a CPU core.

A run is a recipe, a mapping that JSON can hold, and the arrays that it learns from. The
whole training is one program: batches are drawn on the device, in epochs without
replacement, and the steps of training/step.py follow each other in one lax.scan. It is
compiled once for all seeds of an arm.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from model import catalogue
from model.types import Array, Batch, Encoded, Metrics, Params
from training import optimizer, state, step

Recipe = Mapping[str, Any]
TUNING_SEEDS = (100, 101)
Prepare = Callable[..., Batch]  # (batch, key, **recipe["prepare"]) -> batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
  """How one modality is encoded.

  Attributes:
    name: the modality: f32 [b, f], a set [b, n, f] with or without its mask, or an
      image [b, h, w, c], which is flattened after `conv`.
    conv: channels of 3x3 convolutions of stride 2.
    hidden: widths of the layers that see each element by itself; their last output are
      the tokens. () leaves the elements as they are.
    head: hidden widths between the mean of the tokens and the embedding.
    project: whether a linear layer leads to the embedding; else it is what came before,
      such as the array itself: a tower that is frozen already.
    shares: the tower whose weights this one uses too; "": its own. So do two views.
  """

  name: str
  conv: tuple[int, ...] = ()
  hidden: tuple[int, ...] = (128,)
  head: tuple[int, ...] = ()
  project: bool = True
  shares: str = ""


class Body(nn.Module):
  """The layers of a Tower: x -> Encoded of `dim`."""

  tower: Tower
  dim: int

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> Encoded:
    """x: f32, mask: bool[b, n] -> Encoded, pooled [b, dim], tokens [b, n, width]."""
    for channels in self.tower.conv:
      x = nn.gelu(nn.Conv(channels, (3, 3), strides=2)(x))
    if x.ndim != 3:
      x = x.reshape(x.shape[0], 1, -1)
    real = jnp.ones(x.shape[:2], bool) if mask is None else mask
    for width in self.tower.hidden:
      x = nn.gelu(nn.Dense(width)(x))
    weight = real.astype(jnp.float32)[:, :, None]
    count = jnp.maximum(jnp.sum(weight, axis=1), 1.0)
    pooled = jnp.sum(jnp.where(real[:, :, None], x, 0.0), axis=1) / count
    for width in self.tower.head:
      pooled = nn.gelu(nn.Dense(width)(pooled))
    if self.tower.project:
      pooled = nn.Dense(self.dim)(pooled)
    return Encoded(pooled, x, real)


class Towers(nn.Module):
  """One Body per tower, as model.encoders.towers.Towers is used by step and objectives.

  Attributes:
    modalities: what can be encoded; a batch may hold any of them.
    dim: of the shared space.
  """

  modalities: tuple[Tower, ...]
  dim: int

  @nn.compact
  def __call__(
    self, batch: Batch, train: bool = False
  ) -> tuple[dict[str, Encoded], Metrics]:
    """batch -> ({modality: Encoded}, {}); nothing is random, so train is not read."""
    del train
    bodies = {m.name: Body(m, self.dim, name=m.name) for m in self._own()}
    encoded = {
      m.name: bodies[m.shares or m.name](batch[m.name], batch.get(f"{m.name}_mask"))
      for m in self.modalities
      if m.name in batch
    }
    return encoded, {}

  def _own(self) -> list[Tower]:
    return [m for m in self.modalities if not m.shares]


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run leaves.

  Attributes:
    params: {"towers", "objective"}.
    history: every scalar metric, f32[steps].
    apply: (params["towers"], batch) -> {modality: Encoded}, compiled.
    objective: the objective that was trained.
  """

  params: Params
  history: dict[str, np.ndarray]
  apply: Callable[[Params, Batch], dict[str, Encoded]]
  objective: Any

  def encode(self, batch: Mapping[str, Any]) -> dict[str, Encoded]:
    """Returns {modality: Encoded} of the modalities that batch has."""
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}
    return self.apply(self.params["towers"], arrays)

  def embed(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns {modality: f32[n, d]}, of unit norm: what is compared."""
    return {m: unit(np.asarray(e.pooled)) for m, e in self.encode(batch).items()}

  def features(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns {modality: f32[n, w]}, the mean token: what the head is given."""
    tokens = {m: e.tokens for m, e in self.encode(batch).items()}
    return {m: np.asarray(t).mean(axis=1) for m, t in tokens.items()}


def unit(x: np.ndarray) -> np.ndarray:
  """Returns x f32[..., d] at unit norm; zero stays zero."""
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def recipe(
  *,
  seed: int,
  towers: Sequence[Mapping[str, Any]],
  objective: Mapping[str, Any],
  steps: int,
  batch: int,
  lr: float,
  dim: int = 32,
  prepare: Mapping[str, Any] | None = None,
  **more: Any,
) -> dict[str, Any]:
  """Returns what decides a run, to be read by `train` and by the claim itself.

  Args:
    seed: of initialisation, order of the batches and views; perhaps of the data.
    towers: fields of each Tower.
    objective: its "name", a file of model/objectives/ ("contrastive" if absent), and
      its options.
    steps: of training.
    batch: rows of one step.
    lr: of Adam at the start; falls to 0 along a cosine.
    dim: of the shared space.
    prepare: options of the claim's own function of (batch, key).
    more: what only the claim reads, such as the size of its data; or `frozen`, regexes
      of towers' parameters, and `ema`, as in configs/base.py.
  """
  own = dict(seed=seed, towers=list(towers), objective=dict(objective), dim=dim)
  run = dict(steps=steps, batch=batch, lr=lr, prepare=dict(prepare or {}))
  return own | run | more


def train(
  recipe: Recipe, arrays: Mapping[str, Any], prepare: Prepare | None = None
) -> Trained:
  """Runs a recipe.

  Args:
    recipe: of `recipe`.
    arrays: {key: [n, ...]}, f32, i32 or bool, which batches are rows of.
    prepare: (batch, key, **recipe["prepare"]) -> batch, on the device, before the
      step: views, pairs, noise. A function of a module, so that programs are shared.

  Raises:
    ValueError: fewer rows than one batch; or a loss that is not finite at the end.
  """
  rows = len(next(iter(arrays.values())))
  if rows < recipe["batch"]:
    raise ValueError(f"{rows} rows are fewer than one batch of {recipe['batch']}")
  keys = ("towers", "objective", "dim", "steps", "batch", "prepare")
  spec = {k: recipe[k] for k in keys}
  spec |= {k: recipe.get(k, d) for k, d in (("frozen", ()), ("ema", 0.0))}
  run, apply, objective = _program(json.dumps(spec, sort_keys=True), prepare)
  order = _order(recipe["seed"], rows, recipe["batch"], recipe["steps"])
  given = {k: jnp.asarray(v) for k, v in arrays.items()}
  # Views have keys of a generator that compiles in half of the time of threefry's.
  random = (jax.random.key(recipe["seed"], impl=i) for i in (None, "unsafe_rbg"))
  lr = jnp.float32(recipe["lr"])  # an argument: a grid of them shares a program
  params, history = run(*random, given, jnp.asarray(order), lr)
  kept = {k: np.asarray(v) for k, v in history.items()}
  if not np.isfinite(kept["loss"][-1]):
    raise ValueError(f"the loss is {kept['loss'][-1]} at the end")
  return Trained(params, kept, apply, objective)


@functools.cache
def _program(spec: str, prepare: Prepare | None):
  """Returns run(key, view key, arrays, order, lr), apply(params, batch), objective."""
  r = json.loads(spec)
  towers = Towers(tuple(_tower(t) for t in r["towers"]), r["dim"])
  options = {"name": "contrastive"} | r["objective"]
  name = options.pop("name")
  objective = catalogue.load("model.objectives", name, "Objective", options)
  config = base.get_config()
  config.ema, config.ema_warmup = r["ema"], False  # as the methods' own averages
  config.optimizer.update(
    dict(lr=1.0, warmup=0, weight_decay=0.0, clip=0.0, frozen=tuple(r["frozen"]))
  )
  adam = optimizer.build(config.optimizer, r["steps"])

  def ready(batch: Batch, key: Array) -> Batch:
    return prepare(batch, key, **r["prepare"]) if prepare else batch

  def start(key: Array, batch: Batch, tx: Any) -> state.TrainState:
    init_key, objective_key, run_key = jax.random.split(key, 3)
    params = towers.init(init_key, batch)["params"]
    own, first = objective.init(objective_key, towers, batch)
    params = {"towers": params, "objective": own}
    return state.create(run_key, params, first, tx, bool(config.ema))

  def run(key: Array, view_key: Array, arrays: Batch, order: Array, lr: Array):
    tx = optax.chain(adam, optax.scale(lr))
    one = step.make_train_step(config, towers, objective, tx)

    def body(now, item):
      i, rows = item
      batch = {k: v[rows] for k, v in arrays.items()}
      now, metrics = one(now, ready(batch, jax.random.fold_in(view_key, i)))
      return now, {k: v for k, v in metrics.items() if v.ndim == 0}

    first = {k: v[: r["batch"]] for k, v in arrays.items()}
    begin = start(key, ready(first, view_key), tx)
    last, history = jax.lax.scan(body, begin, (jnp.arange(r["steps"]), order))
    return last.params, history

  def apply(params: Params, batch: Batch):
    return towers.apply({"params": params}, batch)[0]

  return jax.jit(run, compiler_options=_quickly()), jax.jit(apply), objective


def _quickly() -> dict[str, Any]:
  # Compiling takes longer than running: 5 s instead of 8, and the program is as fast.
  flag = "xla_backend_optimization_level"
  return {} if flag in os.environ.get("XLA_FLAGS", "") else {flag: 1}


def _tower(fields: Mapping[str, Any]) -> Tower:
  return catalogue.build(Tower, fields, "recipe.towers")


def _order(seed: int, rows: int, batch: int, steps: int) -> np.ndarray:
  """Returns i32[steps, batch]: whole batches of one random order of rows per epoch."""
  # On the host: a sort takes XLA longer to compile than all the rest.
  rng, per = np.random.default_rng((seed, rows)), rows // batch
  orders = [rng.permutation(rows)[: per * batch] for _ in range(-(-steps // per))]
  return np.concatenate(orders).reshape(-1, batch)[:steps].astype(np.int32)


def tune(
  claim: Any, say: Callable[[str], None] = print
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """Returns (arm -> the best options of the grid, a line on each arm's grid).

  Every arm is given the same grid, on seeds that are not the claim's.

  Args:
    claim: a module of benchmarks/claims with ARMS, settings(arm, seed, **options),
      measure, GRID (option -> values; all combinations are tried) and MERIT, the
      figures whose mean over the seeds decides.
    say: is given each line.
  """
  chosen, lines = {}, []
  for arm in claim.ARMS:
    found: dict[tuple[Any, ...], float] = {}
    for values in itertools.product(*claim.GRID.values()):
      options = dict(zip(claim.GRID, values))
      runs = [claim.measure(claim.settings(arm, s, **options)) for s in TUNING_SEEDS]
      found[values] = float(
        np.mean([[r.figures[m] for m in claim.MERIT] for r in runs])
      )
    best, _ = max(found.items(), key=lambda item: item[1])
    chosen[arm] = dict(zip(claim.GRID, best))
    each = ", ".join(f"{_words(v)}: {x:.3f}" for v, x in found.items())
    lines.append(f"{arm}: {each}{_edges(claim.GRID, best)}")
    say(lines[-1])
  return chosen, lines


def choice(
  grid: Mapping[str, Sequence[Any]], merit: Sequence[str], tried: Sequence[str]
) -> dict[str, Any]:
  """Returns a Claim's `choice`: how `tune` chose, and its lines, if there are any."""
  if not tried:
    return dict(aim="Nothing was tuned, for no arm.")
  names = " and ".join(k.replace("_", " ") for k in grid)
  aim = (
    f"Every arm was given the same grid of {names} on seeds "
    f"{' and '.join(map(str, TUNING_SEEDS))}, and has what gave the greatest mean of "
    f"{' and '.join(merit)}, which follow the values:"
  )
  return dict(aim=aim, pilots=list(tried))


def _edges(grid: Mapping[str, Sequence[Any]], best: Sequence[Any]) -> str:
  """Says of which options the best value is the last tried: better may lie beyond."""
  edges = [
    key
    for (key, tried), value in zip(grid.items(), best)
    if len(tried) > 1 and value in (min(tried), max(tried))
  ]
  return f"; at the edge of {' and '.join(edges)}" if edges else ""


def _words(values: tuple[Any, ...]) -> str:
  return " / ".join(f"{v:g}" for v in values)
