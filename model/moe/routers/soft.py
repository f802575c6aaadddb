"""Soft MoE: slots are mixtures of tokens, outputs mixtures of slots (arXiv 2308.00951).

Each expert has `config.model.moe.slots` slots. A slot's input is the mean of the
group's tokens by a softmax over the tokens, a token's output the mean of the slots'
outputs by a softmax over all slots (algorithm 1 there); tokens and slot parameters are
normalised as in section 2.3. Nothing is chosen or dropped, so k, capacity, noise and
priority do not apply, and neither do the losses that balance.

A token's output holds values of all tokens of its group. In contrastive training two
tokens that meet are a leak: a caption inside its image's embedding would solve the task
at once. So the layer mixes each modality by itself, and a group must be one example.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.moe import config as configs
from model.moe import router
from model.moe.router import Mixed, Routing
from model.types import Array


class Router(router.Gate):
  """Softmax over the tokens into the slots, softmax over the slots back.

  Parameters (f32): kernel [w, e * c], scale [].
  """

  mixes = True

  @staticmethod
  def check(config: configs.MoeConfig) -> None:
    """Refuses groups of several examples, dropless dispatch and balancing losses."""
    configs.refuse_losses(
      config,
      ("load", "gshard"),
      "count the tokens that choose an expert, and none does",
    )
    configs.refuse_dropless(
      config, "no token goes to an expert, but mixtures of all do"
    )
    if config.group != 1:
      raise ValueError(
        f"{configs.WHERE}.router = 'soft' with {configs.WHERE}.group = {config.group} "
        f"would mix the tokens of {config.group} examples, each other's negatives, "
        f"into every embedding. Set {configs.WHERE}.group = 1."
      )

  @staticmethod
  def active(config: configs.MoeConfig) -> float:
    """All experts see a part of every token."""
    return config.experts

  @staticmethod
  def mlps(
    config: configs.MoeConfig, tokens: int, example: int, factor: float | None = None
  ) -> float:
    """As many as there are slots, however many tokens they serve; see `router.Gate`."""
    del example, factor
    return config.experts * config.slots / tokens

  @staticmethod
  def matmuls(config: configs.MoeConfig) -> int:
    """Logits, mixing into the slots and mixing back."""
    return 3 * config.slots

  @nn.compact
  def logits(self, x: Array) -> Array:
    """Returns f32[..., e * c] of x [..., w]: scale * cosine of token and slot."""
    shape = (x.shape[-1], self.config.experts * self.config.slots)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    scale = self.param("scale", nn.initializers.ones, ())
    return jnp.matmul(
      _unit(x.astype(jnp.float32), -1),
      scale * _unit(kernel, 0),
      precision=jax.lax.Precision.HIGHEST,
    )

  def __call__(
    self, x: Array, mask: Array, *, train: bool, key: Array | None
  ) -> Routing:
    """Decides for x [g, s, w] and its real tokens bool[g, s]; see `router.Gate`."""
    del train, key
    logits = self.logits(x)
    routes = mix(logits, mask, self.config.experts)
    gates = jnp.sum(routes.combine, axis=-1)
    return Routing(
      routes=routes,
      logits=logits,
      noisy=logits,
      gates=gates,
      load=gates,
      served=mask.astype(jnp.float32),
    )


def mix(logits: Array, mask: Array, experts: int) -> Mixed:
  """Returns the weights of tokens in slots and of slots in tokens; padding has none.

  Args:
    logits: f32[g, s, e * c], expert by expert.
    mask: bool[g, s], True for a real token.
    experts: e.
  """
  g, s, _ = logits.shape
  real = mask[..., None]
  lowest = jnp.finfo(logits.dtype).min  # not -inf: a group may be all padding
  spread = jax.nn.softmax(jnp.where(real, logits, lowest), axis=1)
  spread = jnp.where(real, spread, 0.0)
  combine = jnp.where(real, jax.nn.softmax(logits, axis=2), 0.0)
  return Mixed(
    spread=spread.reshape(g, s, experts, -1), combine=combine.reshape(g, s, experts, -1)
  )


def _unit(x: Array, axis: int) -> Array:
  square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(square + 1e-6)  # finite at 0, as padding is
