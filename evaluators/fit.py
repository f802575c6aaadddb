"""Classifiers on frozen features: by L-BFGS in one piece, or by steps on minibatches.

Both minimise the mean cross-entropy plus l2 / 2 times the squares of the matrices;
vectors, biases among them, are free. Rows are split over the mesh; XLA sums over them.

Axis letters: n examples, b of a minibatch, d features, c classes.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from evaluators import context as context_lib
from evaluators.features import Labelled
from sharding import mesh as meshes
from sharding import placement

TOLERANCE = 1e-6  # of the gradient's norm, at which L-BFGS ends
Apply = Callable[[Any, jax.Array, jax.Array], jax.Array]  # (params, x, mask) -> [b, c]


def linear(params: Mapping[str, jax.Array], x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns x f32[b, d] @ w + b: f32[b, c]."""
  del mask
  return jnp.dot(x, params["w"], precision=lax.Precision.HIGHEST) + params["b"][None]


def zeros(d: int, classes: int) -> dict[str, np.ndarray]:
  """Returns the first parameters of `linear`."""
  return {"w": np.zeros((d, classes), np.float32), "b": np.zeros(classes, np.float32)}


def objective(
  apply: Apply, params: Any, batch: Mapping[str, jax.Array], l2: jax.Array
) -> jax.Array:
  """Returns f32[], what is minimised, over the valid rows of a batch."""
  logits = apply(params, batch["x"], batch["mask"]).astype(jnp.float32)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
  valid = batch["valid"].astype(jnp.float32)
  squares = [jnp.sum(p * p) for p in jax.tree.leaves(params) if p.ndim > 1]
  return jnp.sum(loss * valid) / jnp.sum(valid) + l2 / 2 * sum(squares)


def lbfgs(
  data: Labelled,
  classes: int,
  l2: float,
  mesh: jax.sharding.Mesh,
  *,
  steps: int = 1000,
  keep: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Returns {"w": f32[d, c], "b": f32[c]}, the best linear classifier.

  Args:
    data: with x f32[n, d].
    classes: c.
    l2: of the squares of w; scikit-learn's 1 / (C n).
    mesh: its batch axes split the rows.
    steps: at most.
    keep: bool[n], the rows to fit, all where None: one program serves all choices.
  """
  shards = meshes.batch_shards(mesh)
  batch = _put(data, mesh, -(-len(data.y) // shards) * shards, keep)
  with jax.set_mesh(mesh):
    fitted = _lbfgs(zeros(data.x.shape[1], classes), batch, jnp.float32(l2), steps)
  return jax.tree.map(context_lib.to_numpy, fitted)


@functools.partial(jax.jit, static_argnums=3)
def _lbfgs(params, batch, l2, steps: int):
  loss = functools.partial(objective, linear, batch=batch, l2=l2)
  tx = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry):
    params, state = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  def unfinished(carry):
    count, grad = (optax.tree.get(carry[1], key) for key in ("count", "grad"))
    return (count == 0) | ((count < steps) & (optax.tree.norm(grad) > TOLERANCE))

  return lax.while_loop(unfinished, step, (params, tx.init(params)))[0]


def by_steps(
  apply: Apply,
  params: Any,
  data: Labelled,
  mesh: jax.sharding.Mesh,
  *,
  rule: str,
  lr: float,
  l2: float,
  epochs: int,
  batch_size: int,
  seed: int = 0,
) -> Any:
  """Returns parameters trained on minibatches; the learning rate falls by a cosine.

  Args:
    apply: the classifier.
    params: its first ones.
    data: to fit.
    mesh: its batch axes split the rows of a minibatch.
    rule: "sgd" (Nesterov momentum of 0.9) or "adam".
    lr: the first learning rate.
    l2: of the squares of matrices.
    epochs: passes over the data, each in an order of its own.
    batch_size: rows of a minibatch, at most those that there are.
    seed: of the orders.
  """
  shards = meshes.batch_shards(mesh)
  init, step = _step(apply, rule)
  state = init(params)
  orders = list(minibatches(len(data.y), batch_size, epochs, seed))
  for i, rows in enumerate(orders):
    now = lr * (1 + np.cos(np.pi * i / len(orders))) / 2
    batch = _put(data.rows(rows), mesh, -(-len(rows) // shards) * shards)
    with jax.set_mesh(mesh):
      params, state = step(params, state, batch, np.float32(now), np.float32(l2))
  return jax.tree.map(context_lib.to_numpy, params)


@functools.cache
def _step(apply: Apply, rule: str) -> tuple[Callable, Callable]:
  rules = {"sgd": optax.trace(0.9, nesterov=True), "adam": optax.scale_by_adam()}
  tx = rules[rule]

  def step(params, state, batch, lr, l2):
    grad = jax.grad(lambda p: objective(apply, p, batch, l2))(params)
    # Adam counts in int32 and computes with it, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      updates, state = tx.update(grad, state, params)
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), state

  return jax.jit(tx.init), jax.jit(step)


def minibatches(n: int, size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
  """Yields i[size] rows: each epoch a permutation of n, cut into whole minibatches."""
  rng, size = np.random.default_rng(seed), min(size, n)
  for _ in range(epochs):
    order = rng.permutation(n)
    for start in range(0, n - size + 1, size):
      yield order[start : start + size]


def predict(
  apply: Apply,
  params: Any,
  data: Labelled,
  mesh: jax.sharding.Mesh,
  batch_size: int = 4096,
) -> np.ndarray:
  """Returns i[n]: the class of the greatest logit of each row."""
  shards, out = meshes.batch_shards(mesh), []
  size = min(batch_size, -(-len(data.y) // shards) * shards)
  size = -(-size // shards) * shards
  for start in range(0, len(data.y), size):
    rows = data.rows(np.arange(start, min(start + size, len(data.y))))
    batch = _put(rows, mesh, size)
    with jax.set_mesh(mesh):
      found = context_lib.to_numpy(_best(apply)(params, batch))
    out.append(found[: len(rows.y)])
  return np.concatenate(out)


@functools.cache
def _best(apply: Apply) -> Callable:
  return jax.jit(lambda p, batch: jnp.argmax(apply(p, batch["x"], batch["mask"]), 1))


def _put(
  data: Labelled, mesh: jax.sharding.Mesh, rows: int, keep: np.ndarray | None = None
) -> dict[str, jax.Array]:
  """Returns the rows on the mesh, padded; every host holds them all."""
  n = len(data.y)
  keep = np.ones(n, bool) if keep is None else keep
  at = np.minimum(np.arange(rows), n - 1)
  shard, shards = placement.data_shard(mesh)
  own = slice(rows // shards * shard, rows // shards * (shard + 1))
  mask = np.ones((n, 1), bool) if data.mask is None else data.mask
  host = {"x": data.x[at], "y": data.y[at], "mask": mask[at]}
  host["valid"] = (np.arange(rows) < n) & keep[at]
  return placement.put_batch({k: v[own] for k, v in host.items()}, mesh)
