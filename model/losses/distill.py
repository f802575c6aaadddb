"""Distillation of similarities: what a teacher finds alike, the student is to find.

p_i = softmax_j(t_i . t_j / t'), of the teacher;  q_i = softmax_j(a_i . b_j / t)
L = 1/2 mean_i KL(p_i || q_i) + the same of the columns

With the moving average as teacher: momentum distillation, as in ALBEF (arXiv
2107.07651, section 3.4, whose (1 - alpha) InfoNCE + alpha KL is a sum of two entries of
config.objective.options.losses). With similarities within one modality to follow those
within another: relational, cross-modal distillation, for which only the similarities
matter and not the width of the teacher.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """KL of the student's softmax over the global batch from the teacher's, both ways.

  A pair of a name with itself compares the rows of one modality: without each row's
  similarity to itself, and one way only.

  Attributes:
    pairs: of the student's; the loss is the mean over pairs.
    targets: of the teacher's, one for each pair; (): ("<a>@teacher", "<b>@teacher").
      Without gradient, whatever they are.
    temperature: t, divides the student's cosine similarities.
    teacher_temperature: t', divides the teacher's.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  targets: tuple[pairing.Pair, ...] = ()
  temperature: float = 0.1
  teacher_temperature: float = 0.1
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if self.targets:
      pairing.check(self.targets)
    if len(self.targets) not in (0, len(self.pairs)):
      raise ValueError(
        f"targets = {self.targets} must be () or one pair for each of {self.pairs}"
      )
    for (a, b), (c, d) in zip(self.pairs, self._targets):
      if (a == b) != (c == d):
        raise ValueError(
          f"pairs ({a!r}, {b!r}) and targets ({c!r}, {d!r}): of a modality with itself "
          "both or neither, as its rows are not compared with themselves"
        )
    if not min(self.temperature, self.teacher_temperature) > 0:
      raise ValueError(
        f"temperature = {self.temperature} and teacher_temperature = "
        f"{self.teacher_temperature} must be above 0"
      )

  @property
  def teachers(self) -> tuple[str, ...]:
    """Returns what is read of z without gradient."""
    return tuple(dict.fromkeys(name for pair in self._targets for name in pair))

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {name: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    del params
    metrics: Metrics = {}
    terms = []
    for (a, b), (c, d) in zip(self.pairs, self._targets):
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      ways = ((a, b, c, d),) if a == b else ((a, b, c, d), (b, a, d, c))
      for x, y, s, t in ways:
        each, spread = self._divergence(z[x], z[y], z[s], z[t], x == y, valid)
        term = pairing.masked_mean(each, valid)
        metrics[f"distill/{x}_to_{y}"] = term
        # How many columns the teacher spreads a row over: 1 is a hard label.
        metrics[f"distill/effective_targets_{x}_to_{y}"] = pairing.masked_mean(
          spread, valid
        )
        terms.append(term)
    return jnp.mean(jnp.stack(terms)), metrics

  @property
  def _targets(self) -> tuple[pairing.Pair, ...]:
    if self.targets:
      return self.targets
    return tuple((f"{a}@teacher", f"{b}@teacher") for a, b in self.pairs)

  def _divergence(
    self, x: Array, y: Array, s: Array, t: Array, own: bool, valid: Array
  ) -> tuple[Array, Array]:
    """Returns KL(p_i || q_i) f32[b], and the perplexity of p_i."""
    scale, soft = 1 / self.temperature, 1 / self.teacher_temperature
    s, t = (jax.lax.stop_gradient(v).astype(jnp.float32) for v in (s, t))
    how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile, valid=valid)
    exclude = "diagonal" if own else None
    student = reduce.row_logsumexp(x, y, scale, exclude=exclude, **how)
    teacher = reduce.row_logsumexp(s, t, soft, exclude=exclude, **how)
    some = valid & ~jnp.isneginf(teacher)
    teacher = jnp.where(some, teacher, 0.0)
    # log p is the teacher's score less the row's total: one more product of vectors.
    row = jnp.concatenate([soft * s, -teacher[:, None]], axis=1)
    col = jnp.concatenate([t, jnp.ones_like(teacher)[:, None]], axis=1)
    expect = _expect_others if own else _expect
    score, log_p = reduce.pair_sum(expect, x, y, scale, given=(row, col), **how)
    each = jnp.where(some, student, 0.0) + log_p - score
    return jnp.where(some, each, 0.0), jnp.exp(-log_p)


def _expect(s: Array, same: Array, log_p: Array) -> tuple[Array, Array]:
  """Returns p s and p log p, to be summed."""
  del same
  p = jnp.exp(jnp.minimum(log_p, 0.0))
  return p * s, p * log_p


def _expect_others(s: Array, same: Array, log_p: Array) -> tuple[Array, Array]:
  """Returns the same of the pairs that are not of a row with itself."""
  score, entropy = _expect(s, same, log_p)
  return jnp.where(same, 0.0, score), jnp.where(same, 0.0, entropy)
