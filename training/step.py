"""One training step: encode, objective, auxiliary losses, gradient, update.

A step is one pure function of (state, batch). Microbatches change how the towers are
run, not what the objective sees: each chunk is encoded under jax.checkpoint inside one
lax.map, so the backward pass recomputes chunk by chunk (as in GradCache, 2101.06983)
while the loss always has the whole batch's negatives.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import optax

from model.encoders import routes
from model.types import Array, Batch, Encoded, Metrics
from training.optimizer import frozen_mask
from training.state import TrainState

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
    collected: list[Metrics] = []

    def encode(views: Batch, using: str = "online"):
      stream = jax.random.fold_in(key, len(collected) + 1)
      weights, train = _weights(using, params, state)
      run = make_encoder(towers, train=train, microbatches=config.microbatches)
      encoded, aux = run(weights, views, stream)
      collected.append(aux if using == "online" else {})
      return encoded

    out = objective(
      params["objective"], state.objective_state, encode, batch, key, state.step
    )
    # Every auxiliary loss of every encode call is added, by prefix and never by name:
    # a loss that the towers report cannot be dropped on its way here.
    extra = [v for aux in collected for k, v in aux.items() if k.startswith("losses/")]
    total = out.loss + sum(extra, jnp.zeros((), jnp.float32))
    metrics = {"loss": total, "losses/objective": out.loss, **out.metrics}
    for aux in collected:
      metrics.update(aux)
    return total, (metrics, out.state)

  return loss


def make_train_step(config, towers, objective, tx, lr: Callable | None = None):
  """Returns step(state, batch) -> (state, metrics), to be jitted with state donated.

  Args:
    config: the whole config; reads ema, microbatches, optimizer.frozen and .clip.
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
    metrics["grad_norm"] = optax.tree.norm(grads if clips else _alone(grads))
    metrics["param_norm"] = optax.tree.norm(params)
    if lr is not None:
      metrics["lr"] = jnp.asarray(lr(state.step), jnp.float32)
    ema = state.ema
    if config.ema:
      # Early on the average follows quickly, else it would hold the random start.
      n = state.step.astype(jnp.float32)
      decay = jnp.minimum(config.ema, (1.0 + n) / (10.0 + n))
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


def _alone(grads):
  """Returns the gradients such that no sum of their squares is shared with others.

  Adam squares them too: XLA's CPU backend would write the squares of all of them to
  memory, and read them twice (docs/performance.md). Clipping wants this very norm.
  """
  # Each by itself: the norm must not keep those alive that are already used up.
  return jax.tree.map(jax.lax.optimization_barrier, grads)


def _weights(using: str, params, state: TrainState):
  if using == "online":
    return params["towers"], True
  if using == "frozen":
    return jax.lax.stop_gradient(params["towers"]), False
  if using == "ema":
    if not state.ema:
      raise ValueError('the objective encodes with using="ema": set config.ema > 0')
    return jax.lax.stop_gradient(state.ema["towers"]), False
  raise ValueError(f"encode(using={using!r}): expected online, ema or frozen")


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

  def run(params, batch: Batch, key: Array):
    used = {k: v for k, v in batch.items() if _is_input(k, modalities)}
    chunks = {k: _split(v, microbatches) for k, v in used.items()}
    keys = jax.random.split(key, microbatches)

    @jax.checkpoint
    def one(chunk_and_key):
      chunk, chunk_key = chunk_and_key
      return apply(params, chunk, chunk_key)

    encoded, aux = jax.lax.map(one, (chunks, keys))
    encoded = jax.tree.map(_join, encoded)
    return encoded, jax.tree.map(lambda x: jnp.mean(x, axis=0), aux)

  return run


def eval_encode(towers):
  """Returns encode(params, batch) -> ({modality: Encoded}, aux), without noise.

  Its aux also says where each token went; see `model.encoders.routes`.
  """

  def encode(params, batch: Batch) -> tuple[dict[str, Encoded], Metrics]:
    (encoded, aux), sown = towers.apply(
      {"params": params["towers"]}, batch, train=False, mutable=["intermediates"]
    )
    return encoded, aux | routes.routes(towers, encoded, sown.get("intermediates", {}))

  return encode


def _is_input(key: str, modalities) -> bool:
  return key == "valid" or key.removesuffix("_mask") in modalities


def _split(x: Array, chunks: int) -> Array:
  # Strided, so that every chunk is spread over all devices as the batch is: chunk i
  # takes rows i, i + m, i + 2m, ... and no row leaves its device.
  return jnp.swapaxes(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1)


def _join(x: Array) -> Array:
  x = jnp.swapaxes(x, 0, 1)
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
