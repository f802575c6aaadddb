"""The learned scale (inverse temperature) of similarities, kept as its logarithm."""

import math

import jax
import jax.numpy as jnp

from model.types import Array, Params


def check(temperature: float, max_scale: float) -> None:
  """Raises ValueError unless 0 < 1 / max_scale <= temperature."""
  if not 0 < 1 / max_scale <= temperature:
    raise ValueError(
      f"temperature = {temperature} must be at least 1 / max_scale = {1 / max_scale}"
    )


def parameters(temperature: float, learned: bool) -> Params:
  """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
  return {"log_scale": initial(1 / temperature)} if learned else {}


def inverse(params: Params, temperature: float, max_scale: float) -> Array:
  """Returns f32[]: the learned scale if params has one, else 1 / temperature."""
  if "log_scale" not in params:
    return jnp.float32(1 / temperature)
  return positive(params["log_scale"], max_scale)


def initial(scale: float) -> Array:
  """Returns f32[]: log(scale), the parameter to start from."""
  return jnp.float32(math.log(scale))


def positive(log_scale: Array, limit: float) -> Array:
  """Returns f32[]: min(exp(log_scale), limit)."""
  return jnp.exp(at_most(log_scale, math.log(limit)))


@jax.custom_vjp
def at_most(x: Array, limit: float) -> Array:
  """Returns min(x, limit) f32[], with a gradient that can lead back below the limit.

  The plain minimum has no gradient above the limit: a temperature that once crossed it
  (by one step of momentum) would stay there for the rest of the run. Here only the
  gradient that would push x further up is dropped.
  """
  return jnp.minimum(x, limit)


def _fwd(x, limit):
  return jnp.minimum(x, limit), x >= limit


def _bwd(beyond, g):
  return jnp.where(beyond & (g < 0), 0.0, g), None


at_most.defvjp(_fwd, _bwd)
