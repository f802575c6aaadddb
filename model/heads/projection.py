"""A projection head: an MLP between the embedding and the loss, as in SimCLR.

[Dense, batch norm, ReLU] * (layers - 1), Dense, [batch norm]

The loss shapes the head's output, and what is wanted later is its input (arXiv
2002.05709, section 4.2). Two layers there; three in SimCLR v2 (arXiv 2006.10029).
"""

from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.types import Array, Encoded, Params

EPSILON = 1e-5
NORMS = ("batch", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """An MLP on `pooled`, one for all the names that it is put on.

  Batch norm uses the mean and variance of the global batch of one name, in training and
  otherwise: it keeps no averages.

  Attributes:
    layers: matrices; 1 is linear, 0 gives `pooled` as it is.
    hidden: width of the layers before the last; 0: that of the input.
    out: width of the last.
    norm: "batch" | "none", after each layer but the last, whose bias it makes useless.
    last_norm: also after the last layer, without scale and offset.
  """
