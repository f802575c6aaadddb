"""Each expert takes its c best tokens of the group (Zhou et al., arXiv 2202.09368).

Gates are the softmax over the experts; expert e takes the c = s * k * capacity / E
tokens with its largest gates, of s real ones, so that a token gets 0 to E experts, k *
capacity in the mean, and every expert the same work. There is no noise, no priority and
no difference between training and evaluation: another capacity would be another
function.

Which tokens are taken depends on all tokens of the group. Training contrastively, that
is a leak: an example's embedding may tell of the others that it is compared with, and
in evaluation it changes with its neighbours. So the layer routes each modality by
itself, which keeps the two sides of a positive pair apart (and every expert serves
every modality equally: none can specialise in one), and config.model.moe.group = 1
keeps the examples apart. A larger group is the paper's, and is warned of.
"""

from fractions import Fraction
import functools

from absl import logging
import jax
import jax.numpy as jnp

from model.moe import config as configs
from model.moe import router
from model.moe.router import Routing, Taken
from model.types import Array


class Router(router.Gate):
  """The top c tokens of each expert, by the softmax over the experts."""

  mixes = True

  @staticmethod
  def check(config: configs.MoeConfig) -> None:
    """Refuses dropless dispatch and the losses that balance; warns of the leak."""
    configs.refuse_losses(
      config,
      ("load", "gshard"),
      "balance the experts, which take the same number of tokens as it is",
    )
    configs.refuse_dropless(config, "its experts fill all their slots and drop nothing")
    if config.group > 1:
      _warn_once(
        f"{configs.WHERE}.router = 'expert_choice' with {configs.WHERE}.group = "
        f"{config.group}: an example's embedding depends on the {config.group - 1} "
        "others of its group, its negatives among them. "
        f"Set {configs.WHERE}.group = 1 to keep examples apart."
      )

  @staticmethod
  def active(config: configs.MoeConfig) -> float:
    """In the mean; no expert takes a token twice."""
    return min(config.k * config.capacity, config.experts)

  @staticmethod
  def mlps(
    config: configs.MoeConfig, tokens: int, example: int, factor: float | None = None
  ) -> float:
    """Every slot is filled, so that capacity always counts; see `router.Gate`."""
    del tokens, example, factor
    return Router.active(config)

  def __call__(
    self, x: Array, mask: Array, *, train: bool, key: Array | None
  ) -> Routing:
    """Decides for x [g, s, w] and its real tokens bool[g, s]; see `router.Gate`."""
    del train, key
    c, s = self.config, x.shape[1]
    logits = self.logits(x)
    gates = jax.nn.softmax(logits)
    # Not rounded up: a slot is never empty, but takes one more token.
    slots = router.capacity(s, c.k, c.capacity, c.experts, multiple=1)
    routes = take(gates, mask, slots, Fraction(str(c.capacity)) * c.k / c.experts)
    # [g, e, c, s] in one fused pass; an empty slot is no token.
    taken = jnp.any(jax.nn.one_hot(routes.token, s, dtype=jnp.bool_), axis=2)
    taken = jnp.swapaxes(taken, 1, 2)  # [g, s, e]
    return Routing(
      routes=routes,
      logits=logits,
      noisy=logits,
      gates=gates,
      load=taken.astype(jnp.float32),
      served=jnp.any(taken, axis=-1).astype(jnp.float32),
      expert=jnp.where(taken, jnp.arange(c.experts, dtype=jnp.int32), -1),
    )


def take(gates: Array, mask: Array, slots: int, share: Fraction = Fraction(1)) -> Taken:
  """Gives each expert the tokens of its largest gates; ties go to the earlier token.

  Args:
    gates: f32[g, s, e].
    mask: bool[g, s], True for a real token; padding is never taken.
    slots: c, at most s.
    share: of the group's real tokens, what an expert takes at most, rounded up.
  """
  real = jnp.sum(mask, axis=1, dtype=jnp.int32)
  most = -(-real * share.numerator // share.denominator)
  wish = jnp.where(mask[..., None], jax.lax.stop_gradient(gates), -1.0)
  best, token = jax.lax.top_k(jnp.swapaxes(wish, 1, 2), slots)  # [g, e, c]
  gate = jnp.take_along_axis(jnp.swapaxes(gates, 1, 2), token, axis=2)
  # Of a group with padding some slots stay empty: it must not matter how much there is.
  most = jnp.maximum(most, 1)[:, None, None]
  filled = (best >= 0) & (jnp.arange(slots)[None, None] < most)
  return Taken(
    gate=jnp.where(filled, gate, 0.0),
    token=jnp.where(filled, token, gates.shape[1]).astype(jnp.int32),
  )


@functools.cache
def _warn_once(text: str) -> None:
  logging.warning("%s", text)  # options are built many times
