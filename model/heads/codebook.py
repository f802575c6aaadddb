"""Finite discrete tokens: a dictionary shared by the towers (FDT, arXiv 2303.14865).

q_n = W2 LN(gelu(W1 LN(token_n)))        a query head for each name
r_m = pool_n <q_n, c_m> / sqrt(d) / T    relevance of code m: max, mean or sum of tokens
w = sparsemax(r),  embedding = sum_m w_m c_m

Patches and words meet only through the codes that they turn to, so a pair has to
use the same ones. Padding has no relevance at all; the released code gives it 0, which
is above the negative ones of real tokens. The released recipe has T = 1000 for 16,384
codes: the more codes, the higher T that leaves a given share of them in use.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, ClassVar

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from model.layers import pool as pooling
from model.layers.norm import Norm
from model.layers.sparsemax import sparsemax
from model.types import Array, Encoded, Params

POOLS = ("max", "mean", "sum")
WEIGHTS = {
  "sparsemax": sparsemax,
  "softmax": functools.partial(jax.nn.softmax, axis=-1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """Embeddings as mixtures of codes; all names share the codes.

  Attributes:
    codes: M, how many.
    width: d of a code, hence of the embedding.
    pool: "max" | "mean" | "sum" of a code's relevance over the real tokens.
    weights: "sparsemax" | "softmax" over the codes.
    temperature: T, fixed; divides the relevance.
    block: codes at a time, so that "max" holds f32[b, n, block] and not [b, n, M]; the
      backward pass makes each block again.
  """

  embeds: ClassVar[bool] = True  # evaluation reads what leaves this head

  codes: int = 16_384
  width: int = 512
  pool: str = "max"
  weights: str = "sparsemax"
  temperature: float = 1000.0
  block: int = 1024

  def __post_init__(self):
    if self.pool not in POOLS or self.weights not in WEIGHTS:
      raise ValueError(
        f"codebook has pool = {self.pool!r} and weights = {self.weights!r}; expected "
        f"one of {POOLS} and one of {tuple(WEIGHTS)}"
      )
    if not (self.temperature > 0 and self.codes > 0 and self.width > 0):
      raise ValueError(
        f"codebook has codes = {self.codes}, width = {self.width} and temperature = "
        f"{self.temperature}; all must be above 0"
      )
    if self.block < 1 or (self.codes > self.block and self.codes % self.block):
      raise ValueError(
        f"codebook has codes = {self.codes}, not divisible by block = {self.block} "
        f"({self.codes} % {self.block} = {self.codes % max(self.block, 1)})"
      )

  def init(self, key: Array, spec: Mapping[str, Encoded]) -> Params:
    """Returns {"codes": [M, d], "query_<name>": parameters of its `Query`}.

    Raises:
      ValueError: a name without tokens.
    """
    own = jax.random.split(key, len(spec) + 1)
    params = {"codes": jax.random.normal(own[0], (self.codes, self.width))}
    for i, (name, e) in enumerate(spec.items()):
      if e.tokens is None:
        raise ValueError(f"codebook asks tokens for codes; {name!r} has none")
      one = jnp.zeros((1, *e.tokens.shape[1:]))
      params[f"query_{name}"] = self._query.init(own[i + 1], one)["params"]
    return params

  def __call__(
    self, params: Params, encoded: Mapping[str, Encoded], key: Array, train: bool
  ) -> dict[str, Encoded]:
    """Returns encoded with pooled f32[b, d]; tokens and masks as they are."""
    del key, train
    weights = self.use(params, encoded)
    return {
      name: dataclasses.replace(e, pooled=weights[name] @ params["codes"])
      for name, e in encoded.items()
    }

  def use(self, params: Params, encoded: Mapping[str, Encoded]) -> dict[str, Array]:
    """Returns name -> w f32[b, M]: how much of each code an embedding is made of.

    Also to look at: `model.layers.sparsemax` counts codes in use, and shared ones.
    """
    normalise: Any = WEIGHTS[self.weights]
    out = {}
    for name, e in encoded.items():
      assert e.tokens is not None
      real = jnp.ones(e.tokens.shape[:2], bool) if e.mask is None else e.mask
      # Padding may hold anything: not even a nan is to get further, nor back.
      tokens = jnp.where(real[:, :, None], e.tokens.astype(jnp.float32), 0.0)
      queries = self._query.apply({"params": params[f"query_{name}"]}, tokens)
      relevance = self.relevance(queries, real, params["codes"])
      out[name] = normalise(relevance / self.temperature)
    return out

  def relevance(self, queries: Array, real: Array, codes: Array) -> Array:
    """Returns f32[b, M] of queries [b, n, d], real bool[b, n]; 0 without a token."""
    codes = codes * self.width**-0.5
    if self.pool != "max":
      # Linear in the queries: pooled first, and nothing of [b, n, M] is made.
      mean = pooling.mean(queries, real)
      if self.pool == "sum":
        mean = mean * jnp.sum(real, axis=1, dtype=jnp.float32)[:, None]
      return mean @ codes.T

    @jax.checkpoint
    def best(block):
      r = jnp.einsum("bnd,md->bnm", queries, block)
      r = jnp.max(jnp.where(real[:, :, None], r, -jnp.inf), axis=1)
      return jnp.where(jnp.any(real, axis=1)[:, None], r, 0.0)

    if self.codes <= self.block:
      return best(codes)
    blocks = lax.map(best, codes.reshape(-1, self.block, self.width))
    return jnp.moveaxis(blocks, 0, 1).reshape(queries.shape[0], self.codes)

  @property
  def _query(self) -> Any:
    return Query(self.width)


class Query(nn.Module):
  """What tokens ask the dictionary for.

  Attributes:
    width: d.

  Parameters (f32): norm_in, up/kernel [w, d], norm, down/kernel [d, d], biases.
  """

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: [b, n, w] -> f32[b, n, d]."""
    x = nn.Dense(self.width, name="up")(Norm(name="norm_in")(x))
    x = Norm(name="norm")(jax.nn.gelu(x, approximate=False))
    return nn.Dense(self.width, name="down")(x)
