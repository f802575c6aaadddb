"""Rows that are sets of vectors, and how two of them are scored.

Axis letters: n rows, c columns, d embedding, k and r vectors of a set.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from model.types import Array

_NEAREST = 1e-12  # squared; nearer vectors have no slope: that of the root is infinite


class Tokens(NamedTuple):
  """Rows that are words or patches; scored by `late`.

  Attributes:
    x: [n, k, d] tokens, f32 or bf16.
    real: f32[n, k], 1 for a token and 0 for padding.
  """

  x: Array
  real: Array


class Samples(NamedTuple):
  """Rows that are draws from a distribution; scored by `match`.

  Attributes:
    x: [n, k, d] draws, f32 or bf16.
    shift: f32[n, k], what each adds to its similarities.
  """

  x: Array
  shift: Array


Set = Tokens | Samples


def dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
  """Contracts axis axes[0] of a with axes[1] of b; f32 accumulation and result.

  f32 operands are multiplied as f32 everywhere: at a scale of 100 the bf16 or tf32
  default of accelerators would move a score by 0.2. Pass bf16 operands for speed.
  """
  return lax.dot_general(
    a,
    b,
    (((axes[0],), (axes[1],)), ((), ())),
    precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def products(a: Array | Set, b: Array | Set) -> Array:
  """Returns f32[n, c]: inner products of vectors, or what sets of a kind score."""
  if isinstance(a, Tokens) and isinstance(b, Tokens):
    return late(a, b)
  if isinstance(a, Samples) and isinstance(b, Samples):
    return match(a, b)
  if isinstance(a, Set) or isinstance(b, Set):
    raise ValueError(f"a and b must be of one kind; got {type(a)} and {type(b)}")
  return dot(a, b, (1, 1))


def pull_products(ds: Array, a: Any, b: Any) -> tuple[Any, Any]:
  """Returns the gradients by a and b, f32, of sum ds * products(a, b)."""
  if isinstance(a, Set):
    _, pull = jax.vjp(products, a, b)
    return jax.tree.map(lambda x: x.astype(jnp.float32), pull(ds))
  rounded = ds.astype(b.dtype)
  return dot(rounded, b, (1, 0)), dot(rounded, a, (0, 0))


def late(a: Tokens, b: Tokens) -> Array:
  """Returns f32[n, c]: mean over tokens of a_i of their greatest product with b_j's.

  Not symmetric: each token of a looks for one in b. Padding neither looks nor is found;
  an empty set on either side gives 0. Holds [n, k, c, r]. FILIP (arXiv 2111.07783).
  """
  s = _all_products(a.x, b.x)
  real = b.real[None, None] > 0
  best = jnp.max(jnp.where(real, s, -jnp.inf), axis=-1)
  best = jnp.where(jnp.any(real, axis=-1), best, 0.0)
  looking = lax.stop_gradient(a.real)
  share = looking / jnp.maximum(jnp.sum(looking, axis=-1, keepdims=True), 1.0)
  return jnp.sum(best * share[:, :, None], axis=1)


def match(a: Samples, b: Samples) -> Array:
  """Returns f32[n, c]: log P/(1-P), the log odds that two draws match, in the mean.

  P_ij = mean_kr p(s_ikjr),  p(s) = exp(s) / (exp(s) + exp(-s)) = sigmoid(2 s),
  s_ikjr = shift_ik + shift_jr - ||a_ik - b_jr||

  As log odds, neither -log P nor -log(1-P) loses digits where the other is small. Holds
  [n, k, c, r]. PCME (arXiv 2101.05068, eq. 2 and 3).
  """
  x, y = (v.x.astype(jnp.float32) for v in (a, b))
  x2, y2 = jnp.sum(x * x, axis=-1), jnp.sum(y * y, axis=-1)
  square = _pairwise(x2, y2) - 2 * _all_products(a.x, b.x)
  s = _pairwise(a.shift, b.shift) - jnp.sqrt(jnp.maximum(square, _NEAREST))
  yes, no = (
    jax.nn.logsumexp(jax.nn.log_sigmoid(sign * s), axis=(1, 3)) for sign in (2.0, -2.0)
  )
  return yes - no


def alone(a: Set, b: Set) -> Array:
  """Returns f32[n]: the score of each row of a with its own row of b."""

  def one(x, y):
    return products(*jax.tree.map(lambda v: v[None], (x, y)))[0, 0]

  return jax.vmap(one)(a, b)


def check_scale(a: Array | Set, scale: Any) -> None:
  """Raises ValueError where a scale of Samples would be differentiated.

  `reduce` finds the gradient by the scale as that of products of degree one in a, which
  log odds are not: scale the draws and shifts instead.
  """
  if isinstance(a, Samples) and not isinstance(scale, float):
    raise ValueError(f"the scale of Samples must be a float, such as 1.0; got {scale}")


def numbers_per_pair(a: Array | Set, b: Array | Set) -> int:
  """Returns how many numbers a pair takes while it is scored."""
  if isinstance(a, Set) and isinstance(b, Set):
    return a.x.shape[1] * b.x.shape[1]
  return 1


def _all_products(x: Array, y: Array) -> Array:
  """[n, k, d], [c, r, d] -> f32[n, k, c, r]."""
  (n, k, d), (c, r, _) = x.shape, y.shape
  return dot(x.reshape(n * k, d), y.reshape(c * r, d), (1, 1)).reshape(n, k, c, r)


def _pairwise(x: Array, y: Array) -> Array:
  """f32[n, k], f32[c, r] -> f32[n, k, c, r]: the sums."""
  return x[:, :, None, None] + y[None, None]
