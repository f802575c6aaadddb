"""One training step: encode, objective, auxiliary losses, gradient, update.

A step is one pure function of (state, batch). Microbatches change how the towers are
run, not what the objective sees: each chunk is encoded under jax.checkpoint inside one
lax.map, so the backward pass recomputes chunk by chunk (as in GradCache, 2101.06983)
while the loss always has the whole batch's negatives.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from model.encoders import routes
from model.layers import device
from model.objectives import embedding
from model.types import MESH_AXES, PARTS, Array, Batch, Encoded, Metrics, Params
from training.optimizer import frozen_mask
from training.state import TrainState

SMALL = 2**14  # values of an array that is not worth a kernel
RNG_STREAMS = ("dropout", "router")


def make_loss(config, towers, objective):
  """Returns loss(params, state, batch) -> (f32[], (metrics, objective state)).

  Args:
    config: the whole config; reads microbatches and optimizer.frozen.
    towers: model.encoders.towers.Towers.
    objective: an Objective of model/objectives.
  """

  def loss(params, state: TrainState, batch: Batch):
    frozen = frozen_mask(config.optimizer, params)
    # Not only no update: no backward pass through a frozen tower either.
    params = jax.tree.map(
      lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen
    )
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    encode = Encode(towers, params, state, key, config.microbatches)
    out = objective(
      params["objective"], state.objective_state, encode, batch, key, state.step
    )
    # Every auxiliary loss of every encode call is added, by prefix and never by name:
    # a loss that the towers report cannot be dropped on its way here.
    aux = _together(encode.aux)
    extra = [v for k, v in aux.items() if k.startswith("losses/")]
    total = out.loss + sum(extra, jnp.zeros((), jnp.float32))
    metrics = {"loss": total, "losses/objective": out.loss, **out.metrics, **aux}
    return total, (metrics, out.state)

  return loss


def _together(calls: Sequence[Metrics]) -> Metrics:
  """Returns by name the losses of all encode calls added up, and their mean metrics."""
  found: dict[str, list[Array]] = {}
  for aux in calls:
    for key, value in aux.items():
      found.setdefault(key, []).append(value)
  return {
    key: sum(values[1:], values[0]) / (1 if key.startswith("losses/") else len(values))
    for key, values in found.items()
  }


class Encode:
  """What an objective encodes with: the towers, and which parameters they use.

  "online" ones are trained, with dropout; "ema" is their moving average (config.ema),
  "frozen" the copy of the first step (of objectives that set `frozen = True`), both
  without gradient or noise.

  Attributes:
    aux: the auxiliary losses and metrics of each call so far; {} unless online.
  """

  def __init__(self, towers, params, state: TrainState, key: Array, microbatches: int):
    self.aux: list[Metrics] = []
    self._towers, self._key, self._microbatches = towers, key, microbatches
    self._kept = {"online": params, "ema": state.ema, "frozen": state.frozen}

  def __call__(self, batch: Batch, using: str = "online") -> Mapping[str, Encoded]:
    """Returns {modality: Encoded} of the modalities that the batch has.

    Raises:
      ValueError: parameters that are not kept; says what keeps them.
    """
    weights = self._of(using)["towers"]
    # Every call draws its own noise.
    stream = jax.random.fold_in(self._key, len(self.aux) + 1)
    online = using == "online"
    run = make_encoder(self._towers, train=online, microbatches=self._microbatches)
    encoded, aux = run(weights, batch, stream)
    self.aux.append(aux if online else {})
    return encoded

  def params(self, using: str = "online") -> Params:
    """Returns the objective's own parameters of that kind, such as those of its heads.

    Raises:
      ValueError: parameters that are not kept; says what keeps them.
    """
    return self._of(using)["objective"]

  def _of(self, using: str) -> Params:
    if using not in self._kept:
      known = ", ".join(self._kept)
      raise ValueError(f"encode(using={using!r}): expected one of {known}")
    kept = self._kept[using]
    if not kept:
      raise ValueError(f"the objective encodes with using={using!r}: {_MISSING[using]}")
    return kept if using == "online" else jax.lax.stop_gradient(kept)


_MISSING = {
  "ema": "there is no moving average. Set config.ema, such as 0.99",
  "frozen": "no copy of the first parameters is kept. Set `frozen = True` in the class "
  "of the objective that config.objective.name names",
}


def make_train_step(config, towers, objective, tx, lr: Callable | None = None):
  """Returns step(state, batch) -> (state, metrics), to be jitted with state donated.

  Args:
    config: the whole config; reads ema, ema_warmup, microbatches, optimizer.frozen and
      .clip.
    towers: model.encoders.towers.Towers.
    objective: an Objective of model/objectives.
    tx: the optax transformation over {"towers", "objective"}.
    lr: step -> learning rate, to log.
  """
  grad = jax.value_and_grad(make_loss(config, towers, objective), has_aux=True)
  clips = config.optimizer.clip > 0

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    (_, (metrics, objective_state)), grads = grad(state.params, state, batch)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = _norm(grads if clips else _alone(grads))
    metrics["param_norm"] = _norm(params)
    if lr is not None:
      metrics["lr"] = jnp.asarray(lr(state.step), jnp.float32)
    ema = state.ema
    if config.ema:
      decay = _decay(config, state.step)
      ema = jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), ema, params)
    new = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      objective_state=objective_state,
      ema=ema,
    )
    return new, metrics

  return step


def _decay(config, step: Array) -> Array:
  """Returns f32[]: the share of the moving average that the step after `step` keeps."""
  decay = jnp.float32(config.ema)
  if not config.ema_warmup:
    return decay
  # Early on the average follows quickly, else it would hold the random start.
  n = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def _alone(grads):
  """Returns the gradients such that no sum of their squares is shared with others.

  Adam squares them too: XLA's CPU backend would write the squares of all of them to
  memory, and read them twice (docs/performance.md). Clipping wants this very norm. A
  GPU squares and adds up as it updates, which spares it a kernel an array.
  """
  if device.ambient()[0] == "gpu":
    return grads
  # Each by itself: the norm must not keep those alive that are already used up.
  return jax.tree.map(jax.lax.optimization_barrier, grads)


def _norm(tree) -> Array:
  """Returns f32[], the norm of all leaves, the small ones as one vector.

  Each by itself is a kernel or two on a GPU, which take longer to start than to run.
  """
  leaves = jax.tree.leaves(tree)
  mesh = jax.sharding.get_abstract_mesh()
  if any(mesh.shape.get(axis, 1) > 1 for axis in MESH_AXES[1:]):
    return optax.tree.norm(leaves)  # to join what is split would be to gather it
  small = [x.ravel() for x in leaves if x.size <= SMALL]
  large = [x for x in leaves if x.size > SMALL]
  # Of large ones the sums of rows, which are joined, too.
  sums = [jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))) for x in large]
  # Joined when they are there: not each within the update of its array.
  if small:
    sums.append(jnp.square(jnp.concatenate(jax.lax.optimization_barrier(small))))
  # As they are joined, which the compiler would undo.
  return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(sums))))


def make_encoder(towers, *, train: bool, microbatches: int = 1):
  """Returns run(params, batch, key) -> ({modality: Encoded}, aux) over the whole batch.

  With microbatches = m, the batch [b, ...] is encoded in m chunks of b / m examples,
  one after another; activations of one chunk are alive at a time. Auxiliary losses and
  metrics are averaged over the chunks.
  """
  modalities = [m.name for m in towers.modalities]

  def apply(params, batch: Batch, key: Array):
    keys = jax.random.split(key, len(RNG_STREAMS))
    rngs = dict(zip(RNG_STREAMS, keys)) if train else None
    return towers.apply({"params": params}, batch, train=train, rngs=rngs)

  if microbatches == 1:
    return apply
  # Examples that are packed together stay together.
  block = math.lcm(*(m.pack.group for m in towers.modalities if m.pack))

  def run(params, batch: Batch, key: Array):
    used = {k: v for k, v in batch.items() if _is_input(k, modalities)}
    chunks = {k: _split(v, microbatches, block) for k, v in used.items()}
    keys = jax.random.split(key, microbatches)

    @jax.checkpoint
    def one(chunk_and_key):
      chunk, chunk_key = chunk_and_key
      return apply(params, chunk, chunk_key)

    encoded, aux = jax.lax.map(one, (chunks, keys))
    encoded = jax.tree.map(lambda x: _join(x, block), encoded)
    return encoded, jax.tree.map(lambda x: jnp.mean(x, axis=0), aux)

  return run


def eval_encode(towers, objective=None):
  """Returns encode(params, batch) -> ({modality: Encoded}, aux), without noise.

  Its aux also says where each token went; see `model.encoders.routes`. So nothing is
  packed, whatever plans the batch has.

  Args:
    towers: model.encoders.towers.Towers.
    objective: whose heads are on top, where they make the embedding.
  """

  def encode(params, batch: Batch) -> tuple[dict[str, Encoded], Metrics]:
    batch = {k: v for k, v in batch.items() if not k.endswith("_pack")}
    (encoded, aux), sown = towers.apply(
      {"params": params["towers"]}, batch, train=False, mutable=["intermediates"]
    )
    aux |= routes.routes(towers, encoded, sown.get("intermediates", {}))
    if objective is not None:
      encoded = embedding.embed(objective, params["objective"], encoded)
    return encoded, aux

  return encode


def _is_input(key: str, modalities) -> bool:
  return key == "valid" or any(key == m + part for m in modalities for part in PARTS)


def _split(x: Array, chunks: int, block: int) -> Array:
  # Strided, so that every chunk is spread over all devices as the batch is: chunk i
  # takes rows i, i + m, i + 2m, ... and no row leaves its device. Or blocks of rows.
  if block > 1:
    x = _split(x.reshape(-1, block, *x.shape[1:]), chunks, 1)
    return x.reshape(chunks, -1, *x.shape[3:])
  return jnp.swapaxes(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1)


def _join(x: Array, block: int) -> Array:
  if block > 1:
    x = _join(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1)
    return x.reshape(-1, *x.shape[2:])
  x = jnp.swapaxes(x, 0, 1)
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
