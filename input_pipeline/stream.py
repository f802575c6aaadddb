"""The training stream of one source, or of several: of each position, one row.

Sources of a mixture may hold different things. So that all rows of a batch are alike, a
modality that a source lacks is zeros there, with a mask that is False, and every row of
the run says by "<modality>_valid" whether it has it; losses leave the others out.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from input_pipeline import examples
from input_pipeline.examples import Maker, Rows
from input_pipeline.interleave import Interleave

_LARGEST = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Member:
  """A source, or a part of one, and how it is told from others in a batch.

  Attributes:
    maker: of its examples.
    number: of the source in the mixture.
    first: added to "index", which then counts through all sources.
    space: sources of one space share ids; those of others never do.
    spaces: how many spaces there are.
  """

  maker: Maker
  number: int = 0
  first: int = 0
  space: int = 0
  spaces: int = 1

  def marked(self, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the row with ids and indices that are unique, and "label_source"."""
    id_, index = int(row["id"]), int(row["index"]) + self.first
    if id_ >= 0:
      id_ = id_ * self.spaces + self.space
    if max(id_, index) > _LARGEST:
      raise ValueError(
        f"source {self.maker.name!r}: the id {int(row['id'])} of example {index} among "
        f"{self.spaces} sources of different ids is beyond int32: give sources that "
        "share their ids one value of `ids` in config.data.mixture"
      )
    whole = dict(id=id_, index=index, label_source=self.number)
    return dict(row) | {k: np.asarray(v, np.int32) for k, v in whole.items()}


@dataclasses.dataclass(frozen=True)
class Stream:
  """Makes rows of a mixture; picklable, so that workers can have one each.

  Attributes:
    members: its sources, or their parts.
    plan: which of them gives which position.
    blanks: key -> what a row that lacks it holds; {} for a single source.
    partial: the modalities that some source lacks.
  """

  members: tuple[Member, ...]
  plan: Interleave
  blanks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  partial: tuple[str, ...] = ()

  @classmethod
  def of(cls, members: Sequence[Member], plan: Interleave) -> "Stream":
    """Returns the stream, having read an example of each member.

    Raises:
      ValueError: a source without a usable example, or arrays that differ in shape or
        dtype between sources.
    """
    members = tuple(members)
    rows = [m.maker.train_row(0, 0)[0] for m in members]
    if not members[0].maker.name:
      return cls(members, plan)
    shapes = members[0].maker.shapes
    partial = tuple(m for m in shapes if 0 < sum(m in row for row in rows) < len(rows))
    blanks: dict[str, np.ndarray] = {}
    for member, row in zip(members, rows):
      for key, value in cls._with_masks(row, partial).items():
        other = blanks.setdefault(key, examples.blank(key, value))
        # Texts of other lengths are of other batches: see input_pipeline.buckets.
        if not member.maker.part and (other.shape, other.dtype) != (
          value.shape,
          value.dtype,
        ):
          raise ValueError(
            f"config.data.mixture: {key!r} of source {member.maker.name!r} is "
            f"{value.dtype}{list(value.shape)}, of one before it "
            f"{other.dtype}{list(other.shape)}: give them the same transforms"
          )
    return cls(members, plan, blanks, partial)

  def rows(self, positions: Sequence[int]) -> Rows:
    """Returns the rows of some positions of the run's stream."""
    rows, tried = [], dict.fromkeys(self.names, 0)
    dropped: dict[str, list[tuple[str, int]]] = {name: [] for name in self.names}
    for position in positions:
      which, place = self.plan.locate(position)
      member = self.members[which]
      arrays, n, lost = member.maker.train_row(position, place)
      rows.append(self._alike(member, arrays))
      tried[member.maker.name] += n
      dropped[member.maker.name] += lost
    return Rows(examples.stack(rows), tried, dropped)

  @property
  def names(self) -> tuple[str, ...]:
    """Returns the names of the sources."""
    return tuple(dict.fromkeys(m.maker.name for m in self.members))

  def given(self, position: int) -> dict[str, int]:
    """Returns how many of the first positions each member has given."""
    return dict(zip((m.maker.key for m in self.members), self.plan.counts(position)))

  def _alike(self, member: Member, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not member.maker.name:
      return row
    valid = {f"{m}_valid": np.asarray(m in row) for m in self.partial}
    row = {**self.blanks, **self._with_masks(row, self.partial)}
    return member.marked(row) | valid

  @staticmethod
  def _with_masks(
    row: Mapping[str, np.ndarray], partial: Sequence[str]
  ) -> dict[str, np.ndarray]:
    """Returns the row with masks of partial images, by which absent ones are hidden.

    Absent ids are padding anyway.
    """
    out = dict(row)
    for m in partial:
      if m in row and row[m].ndim > 1 and f"{m}_mask" not in row:
        out[f"{m}_mask"] = np.ones(row[m].shape[0], bool)
    return out
