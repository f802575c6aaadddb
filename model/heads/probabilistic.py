"""A Gaussian instead of a point: PCME's heads (arXiv 2101.05068, section 3.2).

mu = unit(LN(pooled + sigmoid(W attend(tokens))))
log sigma^2 = W' attend'(tokens) + V pooled + c
z_k = mu + sigma * eps_k,  eps_k ~ N(0, 1), k = 1..J, not normalised

The towers' own projection stands for the paper's linear layer under the residual. Where
c starts is ours: at sigma = 1, as the released code starts it, the noise is as long as
sqrt(d) unit vectors.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers.norm import Norm
from model.types import Array, Encoded, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """A mean, a log-variance and draws of each example; each name has its own weights.

  Attributes:
    draws: J, of each example and step of training. Else the mean stands for them.
    hidden: width of the attention over tokens; 0: half of the tokens'.
    log_var: at the start.
  """

  embeds: ClassVar[bool] = True  # evaluation reads what leaves this head

  draws: int = 7
  hidden: int = 0
  log_var: float = -4.0

  def __post_init__(self):
    if self.draws < 1 or self.hidden < 0:
      raise ValueError(
        f"probabilistic has draws = {self.draws} and hidden = {self.hidden}; expected "
        "at least 1 draw, and hidden of 0 or more"
      )

  def init(self, key: Array, spec: Mapping[str, Encoded]) -> Params:
    """Returns {name: parameters of its `Gaussian`}.

    Raises:
      ValueError: a name without tokens.
    """
    params = {}
    for i, (name, e) in enumerate(spec.items()):
      if e.tokens is None:
        raise ValueError(f"probabilistic attends to tokens; {name!r} has none")
      one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), e)
      params[name] = self._module.init(jax.random.fold_in(key, i), one)["params"]
    return params

  def __call__(
    self, params: Params, encoded: Mapping[str, Encoded], key: Array, train: bool
  ) -> dict[str, Encoded]:
    """Returns encoded with the mean as pooled f32[b, d], and log_var f32[b, d].

    Its tokens f32[b, J, d] are the draws; [b, 1, d], the mean, where not training.
    """
    out = {}
    for i, (name, e) in enumerate(encoded.items()):
      mean, log_var = self._module.apply({"params": params[name]}, e)
      draws = mean[:, None]
      if train:
        shape = (mean.shape[0], self.draws, mean.shape[1])
        noise = jax.random.normal(jax.random.fold_in(key, i), shape)
        draws = draws + jnp.exp(log_var / 2)[:, None] * noise
      real = jnp.ones(draws.shape[:2], bool)
      if e.mask is not None:
        real &= jnp.any(e.mask, axis=1)[:, None]
      out[name] = Encoded(mean, draws, real, log_var)
    return out

  @property
  def _module(self) -> Any:
    return Gaussian(hidden=self.hidden, log_var=self.log_var)


class Gaussian(nn.Module):
  """One modality's mean f32[b, d], of unit norm, and log-variance f32[b, d].

  Attributes:
    hidden: width of the attention over tokens; 0: half of the tokens'.
    log_var: at the start.

  Parameters (f32): attend_<x>_up/kernel [w, m], attend_<x>_down/kernel [m, 1] and
  <x>/kernel [w, d] of x = mean and log_var; norm; pooled/kernel [d, d].
  """

  hidden: int
  log_var: float

  @nn.compact
  def __call__(self, e: Encoded) -> tuple[Array, Array]:
    """Encoded with tokens [b, n, w] and pooled [b, d] -> (mean, log-variance)."""
    pooled = e.pooled.astype(jnp.float32)
    d = pooled.shape[-1]
    attended = self._attend("mean", e)
    mean = pooled + jax.nn.sigmoid(nn.Dense(d, name="mean")(attended))
    mean = Norm(name="norm")(mean)
    square = jnp.sum(mean * mean, axis=-1, keepdims=True)
    mean = mean * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    # From zero: the log-variance of every example starts at the same value.
    zeros = nn.initializers.zeros
    start = nn.initializers.constant(self.log_var)
    log_var = nn.Dense(d, kernel_init=zeros, bias_init=start, name="log_var")(
      self._attend("log_var", e)
    )
    own = nn.Dense(d, use_bias=False, kernel_init=zeros, name="pooled")(pooled)
    return mean, log_var + own

  def _attend(self, name: str, e: Encoded) -> Array:
    """Returns f32[b, w]: tokens weighted by softmax(down tanh(up x)); 0 without any."""
    assert e.tokens is not None
    x = e.tokens.astype(jnp.float32)
    real = jnp.ones(x.shape[:2], bool) if e.mask is None else e.mask
    # Padding may hold anything: not even a nan is to get further, nor back.
    x = jnp.where(real[:, :, None], x, 0.0)
    hidden = self.hidden or x.shape[-1] // 2
    up = nn.Dense(hidden, use_bias=False, name=f"attend_{name}_up")
    down = nn.Dense(1, use_bias=False, name=f"attend_{name}_down")
    score = down(jnp.tanh(up(x)))[:, :, 0]
    weight = jax.nn.softmax(jnp.where(real, score, -1e30), axis=-1)
    return jnp.einsum("bn,bnw->bw", weight, x)
