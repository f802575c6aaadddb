"""Multi-head attention with padding; a row that may look nowhere gives 0, never NaN."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import constrain, device, fused, matmul
from model.layers.matmul import Weights
from model.types import Array

IMPLEMENTATIONS = ("xla", "cudnn", "triton")


def pick(x: Array, at: int | Array) -> Array:
  """Returns of x [b, n, w] the token at that position, or at int32[b]: [b, 1, w]."""
  if isinstance(at, int):
    return x[:, at : at + 1]
  return jnp.take_along_axis(x, at[:, None, None], axis=1)


def _until(at: int | Array, x: Array) -> Array:
  """Returns bool[b, n]: the tokens of x [b, n, w] up to that position, or int32[b]."""
  last = jnp.asarray(at, jnp.int32).reshape(-1, 1)
  seen = jnp.arange(x.shape[1], dtype=jnp.int32)[None] <= last
  return jnp.broadcast_to(seen, x.shape[:2])


def attend(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None = None,
  *,
  segments: Array | None = None,
  lengths: Array | None = None,
  causal: bool = False,
  implementation: str = "xla",
) -> Array:
  """Returns softmax(q k / sqrt(dh)) v (arXiv 1706.03762, eq. 1), softmax in f32.

  Args:
    q: [b, q, h, dh].
    k: [b, n, h, dh].
    v: [b, n, h, dh].
    mask: bool[b, n], True for a key that may be seen; None: all.
    segments: int32[b, n] in the place of a mask, with as many queries as keys: each
      query sees the keys of its own segment.
    lengths: int32[b] in the place of a mask, at least 1: the first so many keys may be
      seen. A kernel skips the others, which it cannot where a mask is given.
    causal: query i sees keys 0 to i only; needs as many queries as keys.
    implementation: "xla"; or "cudnn" of `jax.nn.dot_product_attention`, which also
      does what is asked of "triton" here: see `Attention`.

  Returns:
    [b, q, h, dh]; exactly 0, with zero gradient, where a query may see no key.
  """
  if implementation == "triton":
    implementation = "cudnn"
  if implementation == "cudnn" and (mask is segments is None):
    return _cudnn(q, k, v, None, lengths, causal)
  if lengths is not None:
    mask = jnp.arange(k.shape[1])[None] < lengths[:, None]
  if segments is not None:
    allowed = segments[:, None, :, None] == segments[:, None, None, :]
    return _dense(q, k, v, allowed, causal, implementation)
  if mask is None:
    return _dense(q, k, v, None, causal, implementation)
  # A blind query looks everywhere, so that no softmax is over nothing (NaN in some
  # kernels, and in every gradient of a masked one); its result is then dropped.
  if causal:
    seen = jnp.cumsum(mask, axis=-1) > 0  # bool[b, q]
  else:
    seen = jnp.any(mask, axis=-1, keepdims=True)  # bool[b, 1]
  allowed = mask[:, None, None, :] | ~seen[:, None, :, None]
  y = _dense(q, k, v, allowed, causal, implementation)
  return jnp.where(seen[:, :, None, None], y, jnp.zeros((), y.dtype))


def _dense(
  q: Array, k: Array, v: Array, allowed: Array | None, causal: bool, implementation: str
) -> Array:
  """allowed: bool[b, 1, q or 1, n], with a key for every query."""
  if implementation == "cudnn":
    return _cudnn(q, k, v, allowed, None, causal)
  # Written out, since the XLA path of jax.nn's breaks strict promotion. Heads before
  # tokens is how XLA multiplies anyway: asked for, it copies less. The division comes
  # after the values, where there is less to divide (docs/performance.md), except on
  # TPUs, whose backward pass then copies the scores (docs/scale.md).
  late = not device.is_tpu()
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  logits = jnp.einsum(
    "bhqd,bhnd->bhqn", q * scale, k, preferred_element_type=jnp.float32
  )
  if causal:
    below = jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
    allowed = below if allowed is None else allowed & below
  if allowed is not None:
    logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = (weights if late else weights / total).astype(v.dtype)
  y = jnp.einsum("bhqn,bhnd->bhqd", weights, v, preferred_element_type=jnp.float32)
  return jnp.swapaxes((y / total if late else y).astype(v.dtype), 1, 2)


def _cudnn(
  q: Array,
  k: Array,
  v: Array,
  allowed: Array | None,
  lengths: Array | None,
  causal: bool,
) -> Array:
  """The same by cuDNN, which JAX lets train on even lengths only (0.10 to 0.12)."""
  b, queries, keys = *q.shape[:2], k.shape[1]
  odd = queries % 2, keys % 2
  if allowed is not None:
    # One more query looks where the last one does, so that its softmax is finite; one
    # more key is seen by nobody. JAX wants a row for each query.
    allowed = jnp.broadcast_to(allowed, (b, 1, queries, keys))
    allowed = jnp.pad(allowed, (*((0, 0), (0, 0)), (0, odd[0]), (0, 0)), mode="edge")
    allowed = jnp.pad(allowed, ((0, 0), (0, 0), (0, 0), (0, odd[1])))
  elif odd[1] and lengths is None:
    lengths = jnp.full(b, keys, jnp.int32)
  if any(odd):
    row, column = ((0, 0), (0, odd[0])), ((0, 0), (0, odd[1]))
    q = jnp.pad(q, (*row, (0, 0), (0, 0)))
    k, v = (jnp.pad(x, (*column, (0, 0), (0, 0))) for x in (k, v))
  every = None
  if causal:
    lengths = None  # no query of a real token sees a key behind it in any case
  elif lengths is not None:
    # All queries count: no row of the result is to be left as memory happened to be.
    every = jnp.full(b, q.shape[1], jnp.int32)
  y = jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=allowed,
    is_causal=causal,
    query_seq_lengths=every,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )
  return y[:, :queries]


def _attend_one(
  q: Array, k: Array, v: Array, mask: Array | None, at: int | Array, causal: bool
) -> Array:
  """Returns `attend` of q [b, 1, h, dh], the queries of the tokens at that position.

  For one query there is no matrix to be spared, and kernels want some more: XLA's. But
  it is so few that the compiler would split the heads of queries and results over
  fsdp, as weights are split, and then those of all keys and values.
  """
  if causal:
    seen = _until(at, k)
    mask = seen if mask is None else mask & seen
  return constrain.batch(attend(constrain.batch(q), k, v, mask))


class Attention(nn.Module):
  """Multi-head attention of tokens to themselves, or of given queries to them.

  Attributes:
    heads: number of heads, h; must divide the width.
    causal: tokens look only backwards.
    dtype: of the matmuls and the result.
    implementation: "xla" | "cudnn" | "triton", the kernels of `model.layers.fused` for
      tokens that attend to themselves without a mask, where they fit.
    leave: whether the gradient by the last bias is left to what takes the result.

  Parameters (f32): {query, key, value}/kernel [w, h, w/h], their bias [h, w/h];
  out/kernel [h, w/h, w], out/bias [w].
  """

  heads: int
  causal: bool = False
  dtype: jnp.dtype = jnp.float32
  implementation: str = "xla"
  leave: bool = False

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None = None,
    query: Array | None = None,
    segments: Array | None = None,
    lengths: Array | None = None,
    at: int | Array | None = None,
  ) -> tuple[Array, Array]:
    """Attends.

    Args:
      x: [b, n, w].
      mask: bool[b, n], True for a real token; None: all real.
      query: [b, q, w]; x itself by default.
      segments: int32[b, n] instead of a mask; tokens see those of their own segment.
      lengths: int32[b] instead of a mask; the first so many tokens are real.
      at: a position of each example, or int32[b]: only the token there asks, q = 1;
        with a mask or none.

    Returns:
      dtype [b, q, w], and the last bias, [w], which is in it.

    Raises:
      ValueError: a width that the heads do not divide.
    """
    width = x.shape[-1]
    if width % self.heads:
      raise ValueError(
        f"width {width} is not divisible by config.model.trunk.heads = {self.heads} "
        f"({width} % {self.heads} = {width % self.heads})"
      )

    shape = (self.heads, width // self.heads)
    weights = [Weights(shape, name=name)(width) for name in ("query", "key", "value")]
    plain = mask is segments is at is query is None
    own = self.implementation == "triton" and plain
    if own and fused.fits(x.shape[1], shape[1], self.dtype):
      kernel, bias = (jnp.stack(parts, axis=-2) for parts in zip(*weights))
      qkv = matmul.linear(x, kernel, bias, self.dtype, leave=True)
      y = fused.attend(qkv, bias, lengths, self.causal)
    else:
      if at is not None:
        query = pick(x, at)
      inputs = (x if query is None else query, x, x)
      q, k, v = (matmul.linear(z, *w, self.dtype) for z, w in zip(inputs, weights))
      if at is None:
        y = attend(
          q,
          k,
          v,
          mask,
          segments=segments,
          lengths=lengths,
          causal=self.causal,
          implementation=self.implementation,
        )
      else:
        y = _attend_one(q, k, v, mask, at, self.causal)
    kernel, bias = Weights((width,), name="out")(*shape)
    return matmul.linear(y, kernel, bias, self.dtype, self.leave), bias
