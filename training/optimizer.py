"""Optimizer and schedule of a config, as one optax transformation."""

import re

import jax
from ml_collections import ConfigDict
import optax

from model.catalogue import near_misses
from model.types import Params

OPTIMIZERS = ("adafactor", "adamw", "lion")
SCHEDULES = ("constant", "cosine", "rsqrt")


def schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then the named decay.

  rsqrt follows Zhai et al. (2106.04560, section 3.3): after warm-up the rate is
  lr / sqrt(1 + (step - warmup) / timescale). `cooldown` ends it linearly at 0.

  Raises:
    ValueError: unknown name, or warm-up and cooldown leave no steps.
  """
  c = config
  if c.schedule not in SCHEDULES:
    hint = near_misses(c.schedule, list(SCHEDULES))
    raise ValueError(f"config.optimizer.schedule = {c.schedule!r}: {hint}")
  if c.warmup + c.cooldown > total_steps:
    raise ValueError(
      f"config.optimizer.warmup + cooldown = {c.warmup} + {c.cooldown} exceeds "
      f"config.total_steps = {total_steps}"
    )
  body = max(1, total_steps - c.warmup)
  if c.schedule == "cosine":
    decay = optax.cosine_decay_schedule(c.lr, body)
  elif c.schedule == "rsqrt":

    def decay(step):
      return c.lr * (1.0 + step / c.timescale) ** -0.5
  else:
    decay = optax.constant_schedule(c.lr)
  warmup = optax.linear_schedule(0.0, c.lr, max(1, c.warmup))
  rate = optax.join_schedules([warmup, decay], [c.warmup])
  if c.cooldown and c.schedule != "cosine":
    ramp = optax.linear_schedule(1.0, 0.0, c.cooldown, total_steps - c.cooldown)
    before = rate
    rate = lambda step: before(step) * ramp(step)  # noqa: E731
  return _promoting(rate)


def paths(params: Params) -> Params:
  """Returns the tree of slash-joined parameter paths: {"a": {"b": x}} -> "a/b"."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "/".join(str(getattr(k, "key", k)) for k in path), params
  )


def frozen_mask(config: ConfigDict, params: Params) -> Params:
  """Returns a tree of bools: True where a regex of config.optimizer.frozen matches.

  Raises:
    ValueError: a regex that matches no parameter.
  """
  names = paths(params)
  flat = jax.tree.leaves(names)
  for rule in config.frozen:
    if not any(re.search(rule, n) for n in flat):
      shown = ", ".join(sorted({"/".join(n.split("/")[:2]) for n in flat}))
      raise ValueError(
        f"config.optimizer.frozen = {rule!r} matches no parameter; they start with "
        f"{shown}"
      )
  return jax.tree.map(lambda n: any(re.search(r, n) for r in config.frozen), names)


def build(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
  """Returns the transformation of `config.optimizer`; frozen parameters hold no state.

  Weight decay touches kernels only: not biases, norms, embeddings, positions, scales.

  Raises:
    ValueError: an unknown optimizer or schedule name.
  """
  c = config
  if c.name not in OPTIMIZERS:
    hint = near_misses(c.name, list(OPTIMIZERS))
    raise ValueError(f"config.optimizer.name = {c.name!r}: {hint}")
  lr = schedule(c, total_steps)

  def kernels(params):
    return jax.tree.map(lambda n: n.rsplit("/", 1)[-1] == "kernel", paths(params))

  if c.name == "adamw":
    scale = optax.scale_by_adam(b1=c.b1, b2=c.b2, mu_dtype=c.moment_dtype)
  elif c.name == "lion":
    scale = optax.scale_by_lion(b1=c.b1, b2=c.b2, mu_dtype=c.moment_dtype)
  else:  # as in Scaling ViT (2106.04560): a low-precision first moment, b2 capped
    scale = optax.chain(
      optax.scale_by_factored_rms(decay_rate=0.8),
      optax.clip_by_block_rms(1.0),
      optax.ema(c.b1, debias=False, accumulator_dtype=c.moment_dtype),
    )
  # What is switched off keeps its place: a run can go on with it switched on.
  nothing = optax.identity()
  train = optax.chain(
    optax.clip_by_global_norm(c.clip) if c.clip else nothing,
    scale,
    optax.add_decayed_weights(c.weight_decay, mask=kernels)
    if c.weight_decay
    else nothing,
    _scale_by_path(c.lr_scale) if c.lr_scale else nothing,
    optax.scale_by_learning_rate(lr),
  )
  if not c.frozen:
    return _promoting_transformation(train)

  def label(params):
    mask = frozen_mask(c, params)
    return jax.tree.map(lambda f: "frozen" if f else "train", mask)

  both = optax.partition({"train": train, "frozen": optax.set_to_zero()}, label)
  return _promoting_transformation(both)


def _promoting(fn):
  # Optax counts in int32 and computes with it in float32, which strict promotion, under
  # which everything of ours is tested, refuses.
  def call(*args):
    with jax.numpy_dtype_promotion("standard"):
      return fn(*args)

  return call


def _promoting_transformation(tx) -> optax.GradientTransformation:
  return optax.GradientTransformation(_promoting(tx.init), _promoting(tx.update))


def _scale_by_path(rules) -> optax.GradientTransformation:
  def factor(name):
    return next((f for r, f in rules if re.search(r, name)), 1.0)

  def update(updates, params=None):
    del params
    return jax.tree.map(lambda n, u: u * factor(n), paths(updates), updates)

  return optax.stateless(update)
