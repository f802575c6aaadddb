"""Wide paths: a linear map of plain descriptors, added to the embedding past the trunk.

As in wide and deep models (arXiv 1606.07792, section 3): the trunk learns what is
composed, the wide path what is plain, such as "this colour at this place" or "a word
with these letters". With few examples the plain part is most of what generalises.
Axis letters: b batch, d embedding.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import descriptors
from model.types import Array


class Descriptors(nn.Module):
  """A linear layer on descriptors of the input: see model.layers.descriptors.

  No gradient goes back to the input.

  Attributes:
    features: d.
    gradients: (cells per side, bins) of the gradients' histograms; (): none.
    colors: (cells per side, bins per channel) of the colors' histograms; (): none.
    color_range: least and greatest value of the input.
    drop: share of the cells that training sets to 0.
    name_of: the modality, for error messages.
    dtype: of the matmuls; the result is f32.

  Parameters (f32): gradients [cells^2 * bins, d], colors [cells^2 * bins^c, d].
  Random stream while training with drop > 0: "dropout".
  """

  features: int
  gradients: tuple[int, ...] = ()
  colors: tuple[int, ...] = ()
  color_range: tuple[float, float] = (0.0, 1.0)
  drop: float = 0.0
  name_of: str = "image"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None = None, train: bool = False) -> Array:
    """Returns f32[b, d].

    Args:
      x: float [b, h, w, c], or [b, t, f] with one channel.
      mask: bool[b, h], True for a real frame (row); padded frames count as 0.
      train: whether to leave cells out.

    Raises:
      ValueError: an input that does not divide into the cells.
    """
    if x.ndim == 3:
      x = x[..., None]
    if mask is not None:
      x = jnp.where(mask[:, :, None, None], x, jnp.zeros((), x.dtype))
    # Roots and lengths of 0, of which histograms are full, have no finite slope.
    x = jax.lax.stop_gradient(x)
    out = jnp.zeros((), jnp.float32)
    for key, cells in self._described(x).items():
      cells = self._dropped(cells) if train and self.drop else cells
      flat = cells.reshape(len(x), -1).astype(self.dtype)
      shape = (flat.shape[1], self.features)
      kernel = self.param(key, nn.initializers.lecun_normal(), shape)
      out = out + jnp.matmul(
        flat, kernel.astype(self.dtype), preferred_element_type=jnp.float32
      )
    return out

  def _described(self, x: Array) -> dict[str, Array]:
    """Returns the descriptors, each [b, cells, values of one]."""
    out: dict[str, Array] = {}
    for key in ("gradients", "colors"):
      if not getattr(self, key):
        continue
      cells, bins = getattr(self, key)
      (h, w), where = x.shape[1:3], f"config.model.modalities.{self.name_of}.{key}"
      if h % cells or w % cells:
        raise ValueError(
          f"{self.name_of} of {h} x {w} is not cut into {cells} x {cells} cells by "
          f"{where} = {getattr(self, key)} ({h} % {cells} = {h % cells}, {w} % {cells} "
          f"= {w % cells})"
        )
      if key == "gradients":
        out[key] = descriptors.gradients(x, cells, bins)
      else:
        out[key] = descriptors.colors(x, cells, bins, self.color_range)
    return out

  def _dropped(self, cells: Array) -> Array:
    draw = jax.random.uniform(self.make_rng("dropout"), cells.shape[:2])[..., None]
    kept = cells * jnp.asarray(1 / (1 - self.drop), cells.dtype)
    return jnp.where(draw >= self.drop, kept, jnp.zeros((), cells.dtype))


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
