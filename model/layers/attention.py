"""Multi-head attention with padding; a row that may look nowhere gives 0, never NaN."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import matmul
from model.types import Array

IMPLEMENTATIONS = ("xla", "cudnn")


def attend(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None = None,
  *,
  segments: Array | None = None,
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
    causal: query i sees keys 0 to i only; needs as many queries as keys.
    implementation: "xla", or "cudnn" of `jax.nn.dot_product_attention`.

  Returns:
    [b, q, h, dh]; exactly 0, with zero gradient, where a query may see no key.
  """
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
    return _cudnn(q, k, v, allowed, causal)
  # Written out, since the XLA path of jax.nn's breaks strict promotion. Heads before
  # tokens is how XLA multiplies anyway: asked for, it copies less. The division comes
  # after the values, where there is less to divide (docs/performance.md).
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
  y = jnp.einsum(
    "bhqn,bhnd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
  return jnp.swapaxes((y / total).astype(v.dtype), 1, 2)


def _cudnn(q: Array, k: Array, v: Array, allowed: Array | None, causal: bool) -> Array:
  """The same by cuDNN, which trains with a mask on even lengths only (JAX 0.10)."""
  queries = q.shape[1]
  odd = queries % 2, k.shape[1] % 2
  if allowed is not None and any(odd):
    row, column = ((0, 0), (0, odd[0])), ((0, 0), (0, odd[1]))
    q = jnp.pad(q, (*row, (0, 0), (0, 0)))
    k, v = (jnp.pad(x, (*column, (0, 0), (0, 0))) for x in (k, v))
    # One more query looks where the last one does, so that its softmax is finite; one
    # more key is seen by nobody.
    if allowed.shape[2] > 1:
      allowed = jnp.pad(allowed, (*((0, 0), (0, 0)), (0, odd[0]), (0, 0)), mode="edge")
    allowed = jnp.pad(allowed, ((0, 0), (0, 0), (0, 0), (0, odd[1])))
  y = jax.nn.dot_product_attention(
    q, k, v, mask=allowed, is_causal=causal, implementation="cudnn"
  )
  return y[:, :queries]


class Attention(nn.Module):
  """Multi-head attention of tokens to themselves, or of given queries to them.

  Attributes:
    heads: number of heads, h; must divide the width.
    causal: tokens look only backwards.
    dtype: of the matmuls and the result.
    implementation: "xla" | "cudnn".

  Parameters (f32): {query, key, value}/kernel [w, h, w/h], their bias [h, w/h];
  out/kernel [h, w/h, w], out/bias [w].
  """

  heads: int
  causal: bool = False
  dtype: jnp.dtype = jnp.float32
  implementation: str = "xla"

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None = None,
    query: Array | None = None,
    segments: Array | None = None,
  ) -> Array:
    """Attends.

    Args:
      x: [b, n, w].
      mask: bool[b, n], True for a real token; None: all real.
      query: [b, q, w]; x itself by default.
      segments: int32[b, n] instead of a mask; tokens see those of their own segment.

    Returns:
      dtype [b, q, w].

    Raises:
      ValueError: a width that the heads do not divide.
    """
    width = x.shape[-1]
    if width % self.heads:
      raise ValueError(
        f"width {width} is not divisible by config.model.trunk.heads = {self.heads} "
        f"({width} % {self.heads} = {width % self.heads})"
      )

    def project(name: str, inputs: Array) -> Array:
      return nn.DenseGeneral(
        (self.heads, width // self.heads),
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        dot_general=matmul.dot_general,
        name=name,
      )(inputs)

    y = attend(
      project("query", x if query is None else query),
      project("key", x),
      project("value", x),
      mask,
      segments=segments,
      causal=self.causal,
      implementation=self.implementation,
    )
    return nn.DenseGeneral(
      width,
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      dot_general=matmul.dot_general,
      name="out",
    )(y)
