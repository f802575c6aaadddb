"""Pooling: the tokens of an example become one vector, and padding has no say in it."""

from flax import linen as nn
import jax.numpy as jnp

from model.layers.attention import Attention, pick
from model.layers.mlp import Mlp
from model.layers.norm import Norm
from model.types import Array

POOLS = ("mean", "cls", "first", "last", "map")
ONE = ("cls", "first", "last")  # read one token only


def mean(x: Array, mask: Array | None) -> Array:
  """[b, n, w], bool[b, n] -> f32[b, w]: the mean over real tokens; 0 without any."""
  x = x.astype(jnp.float32)
  if mask is None:
    return jnp.mean(x, axis=1)
  total = jnp.sum(jnp.where(mask[..., None], x, jnp.float32(0)), axis=1)
  count = jnp.sum(mask, axis=1, dtype=jnp.float32)
  return total / jnp.maximum(count, jnp.float32(1))[:, None]


class Pool(nn.Module):
  """One vector per example.

  Attributes:
    kind: "mean" | "cls" (a learned token put in front of the others) | "first" (the
      first token, as BERT's [CLS]) | "last" (the last real token) | "map" (a learned
      query attends to the tokens, then a residual MLP: arXiv 2106.04560, appendix A;
      SigLIP's head).
    width: of a token.
    heads: of "map".
    hidden: MLP width of "map".
    norm_kind: of the norm of "map".
    epsilon: of the norm of "map".
    activation: of the MLP of "map".
    dtype: of the matmuls of "map".
    implementation: of the attention of "map".
    registers: learned tokens behind the one of "cls" (arXiv 2309.16588).

  Parameters (f32): cls [w] and registers [r, w] of "cls"; probe [w], attention, norm
  and mlp of "map".
  """

  kind: str
  width: int
  heads: int = 1
  hidden: int = 1
  norm_kind: str = "layernorm"
  epsilon: float = 1e-6
  activation: str = "gelu_tanh"
  dtype: jnp.dtype = jnp.float32
  implementation: str = "xla"
  registers: int = 0

  def setup(self):
    """Creates the parameters of `kind`."""
    if self.kind not in POOLS:
      raise ValueError(f"pool = {self.kind!r}, expected one of {POOLS}")
    if self.kind == "cls":
      self.cls = self.param("cls", nn.initializers.normal(0.02), (self.width,))
    if self.registers:
      shape = (self.registers, self.width)
      self.register = self.param("registers", nn.initializers.normal(0.02), shape)
    if self.kind == "map":
      init = nn.initializers.normal(self.width**-0.5)
      self.probe = self.param("probe", init, (self.width,))
      self.attention = Attention(
        self.heads, dtype=self.dtype, implementation=self.implementation
      )
      self.norm = Norm(self.norm_kind, self.dtype, self.epsilon)
      self.mlp = Mlp(self.hidden, self.activation, dtype=self.dtype)

  def prepend(self, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Puts the tokens of "cls" before x [b, n, w] and its mask; else changes none."""
    if self.kind != "cls":
      return x, mask
    b = x.shape[0]
    own = self.cls[None]
    if self.registers:
      own = jnp.concatenate([own, self.register])
    if mask is not None:
      mask = jnp.concatenate([jnp.ones((b, len(own)), bool), mask], axis=1)
    own = own.astype(x.dtype)
    if self.implementation != "xla":
      # XLA is slower to join arrays on a GPU than to add them.
      x = jnp.pad(x, ((0, 0), (len(own), 0), (0, 0)))
      return x + jnp.pad(own, ((0, x.shape[1] - len(own)), (0, 0)))[None], mask
    return jnp.concatenate(
      [jnp.broadcast_to(own[None], (b, *own.shape)), x], axis=1
    ), mask

  def at(self, n: int, mask: Array | None) -> int | Array | None:
    """Returns where the one token is that this pooling reads; None: it reads them all.

    Args:
      n: tokens of an example.
      mask: bool[b, n] or None, all real.

    Returns:
      a position, or int32[b].
    """
    if self.kind in ("cls", "first"):
      return 0
    if self.kind != "last":
      return None
    if mask is None:
      return n - 1
    return n - 1 - jnp.argmax(mask[:, ::-1], axis=1)

  def read(self, token: Array, mask: Array | None) -> Array:
    """Returns f32[b, w] of the token [b, 1, w] of `at`; 0 if it is padding."""
    y = token[:, 0].astype(jnp.float32)
    if mask is None or self.kind == "cls":
      return y
    real = mask[:, 0] if self.kind == "first" else mask.any(axis=1)
    return jnp.where(real[:, None], y, jnp.float32(0))

  def __call__(self, x: Array, mask: Array | None) -> Array:
    """x: [b, n, w], mask: bool[b, n] or None (all real) -> f32[b, w]."""
    at = self.at(x.shape[1], mask)
    if at is not None:
      return self.read(pick(x, at), mask)
    if self.kind == "mean":
      return mean(x, mask)
    probe = jnp.broadcast_to(
      self.probe.astype(self.dtype)[None, None], (x.shape[0], 1, self.width)
    )
    y, _ = self.attention(x, mask, query=probe)
    y = y + self.mlp(self.norm(y))[0]
    return y[:, 0].astype(jnp.float32)
