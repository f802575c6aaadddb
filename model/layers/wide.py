"""Wide paths: a linear map of the raw input, added to the embedding past the trunk.

As in wide and deep models (arXiv 1606.07792, section 3): the trunk learns what is
composed, the wide path what is plain, such as "this colour at this place" or "a word
with these letters". With few examples the plain part is most of what generalises.
Axis letters: b batch, d embedding.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.types import Array


class Thumbnail(nn.Module):
  """A linear layer on the input averaged to few pixels.

  Attributes:
    features: d.
    size: (height, width) of the thumbnail.
    drop: share of its pixels that training sets to 0.
    name_of: the modality, for error messages.
    dtype: of the matmul; the result is f32.

  Parameters (f32): kernel [height * width * c, d].
  Random stream while training with drop > 0: "dropout".
  """

  features: int
  size: tuple[int, ...]
  drop: float = 0.0
  name_of: str = "image"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None, train: bool = False) -> Array:
    """Returns f32[b, d].

    Args:
      x: float [b, h, w, c], or [b, t, f] with one channel.
      mask: bool[b, h], True for a real frame (row); padded frames count as 0.
      train: whether to leave pixels out.

    Raises:
      ValueError: an input that does not divide into the thumbnail's pixels.
    """
    if x.ndim == 3:
      x = x[..., None]
    if mask is not None:
      x = jnp.where(mask[:, :, None, None], x, jnp.zeros((), x.dtype))
    b, h, w, c = x.shape
    rows, columns = self.size
    if h % rows or w % columns:
      raise ValueError(
        f"{self.name_of} of {h} x {w} cannot be averaged to config.model.modalities."
        f"{self.name_of}.thumbnail = {self.size} ({h} % {rows} = {h % rows}, "
        f"{w} % {columns} = {w % columns})"
      )
    x = x.astype(self.dtype).reshape(b, rows, h // rows, columns, w // columns, c)
    x = x.mean(axis=(2, 4))
    if train and self.drop:
      draw = jax.random.uniform(self.make_rng("dropout"), (b, rows, columns, 1))
      kept = x * jnp.asarray(1 / (1 - self.drop), x.dtype)
      x = jnp.where(draw >= self.drop, kept, jnp.zeros((), x.dtype))
    shape = (math.prod(x.shape[1:]), self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    return jnp.matmul(
      x.reshape(b, -1), kernel.astype(self.dtype), preferred_element_type=jnp.float32
    )


class Ngrams(nn.Module):
  """The sum of a text's n-gram embeddings, over the root of their number.

  Hashed letter n-grams as in fastText (arXiv 1607.04606, eq. 1): a word that training
  never saw is then near the seen ones that are spelt alike.

  Attributes:
    features: d.
    rows: of the table that n-grams are hashed into, the padding row 0 included.
    drop: share of the n-grams that training leaves out.

  Parameters (f32): embedding [rows, d].
  Random stream while training with drop > 0: "dropout".
  """

  features: int
  rows: int
  drop: float = 0.0

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """Returns f32[b, d] of x int[b, n], n-grams padded with 0."""
    # From zero: most n-grams of an unseen word are in no row that training touches, and
    # must not add noise.
    shape = (self.rows, self.features)
    table = self.param("embedding", nn.initializers.zeros, shape)
    kept = x != 0
    if train and self.drop:
      kept &= jax.random.uniform(self.make_rng("dropout"), x.shape) >= self.drop
    total = jnp.sum(jnp.where(kept[..., None], table[x], 0.0), axis=1)
    count = jnp.sum(kept, axis=1, dtype=jnp.float32)[:, None]
    return total * jax.lax.rsqrt(jnp.maximum(count, 1.0))
