"""Short sequences share rows, so that their padding costs no arithmetic.

A group of examples, [group, n, w] with masks, moves into [group, tokens, w] with fewer
tokens than n: all of its real ones, and little padding. Attention alone has to know: it
runs over bins of a few rows, joined to [rows * tokens], in one of which each example
lies, contiguous; and a token attends to those of its own example. What works on tokens
sees [b, tokens, w] in the place of [b, n, w].

Where each example begins is planned with the batch, by input_pipeline/packing.py.
"""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp

from model.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
  """The keys of `config.model.modalities.<name>.pack`.

  Attributes:
    tokens: of an example in the trunk, those of a group in the mean.
    rows: examples' worth of tokens in a bin, which is what attention runs over.
    group: consecutive examples that are packed together, into group / rows bins.
  """

  tokens: int
  rows: int = 4
  group: int = 32

  def check(self, n: int, least: int, where: str) -> None:
    """Checks the sizes against each other and the model.

    Args:
      n: tokens of a whole example.
      least: tokens of the shortest one that is not empty.
      where: the config key of these.

    Raises:
      ValueError: with the arithmetic.
    """
    if self.rows < 1 or self.group < 1 or self.group % self.rows:
      raise ValueError(
        f"{where}.group = {self.group} examples are not whole bins of {where}.rows = "
        f"{self.rows}: set the former to a multiple of the latter, both at least 1"
      )
    if not least <= self.tokens < n:
      raise ValueError(
        f"{where}.tokens = {self.tokens}, expected {least} to {n - 1}: a whole example "
        f"has {n} tokens, the shortest one {least}; 0 does not pack"
      )
    if self.rows * self.tokens < n:
      raise ValueError(
        f"{where}: a bin of rows * tokens = {self.rows} * {self.tokens} = "
        f"{self.rows * self.tokens} does not hold a whole example of {n} tokens; set "
        f"{where}.rows to {-(-n // self.tokens)} or more"
      )


@struct.dataclass
class Packed:
  """Where the tokens of packed rows are; stands where other streams have a mask.

  Attributes:
    slot: int32[b, n], each token's slot among the group * tokens of its group; that
      number, or a larger one, for padding.
    token: int32[b, tokens], the inverse: the token in each slot, among the group * n of
      the group; that number for an empty slot.
    rows: of a bin.
    group: examples of a group.
    whole: whether rows are examples with nothing left out, and empty slots behind.
  """

  slot: Array
  token: Array
  rows: int = struct.field(pytree_node=False)
  group: int = struct.field(pytree_node=False)
  whole: bool = struct.field(pytree_node=False, default=False)

  @property
  def real(self) -> Array:
    """Returns bool[b, tokens]: the slots that are not empty."""
    return self.token < self.group * self.slot.shape[1]

  def enter(self, x: Array) -> Array:
    """Moves [b, n, w] into [b, tokens, w]; 0 in an empty slot."""
    if self.whole:
      more = self.token.shape[1] - x.shape[1]
      return jnp.pad(x, ((0, 0), (0, more), (0, 0)))
    return _move(x, self.token, self.slot, self.group)

  def leave(self, y: Array) -> Array:
    """Moves [b, tokens, w] back to [b, n, w]; 0 where there is padding."""
    if self.whole:
      return y[:, : self.slot.shape[1]]
    return _move(y, self.slot, self.token, self.group)

  def of_example(self, values: Array) -> Array:
    """Returns [b, tokens] of values [b]: to each slot that of its token's example.

    That of an empty slot is of any example.
    """
    example = jnp.minimum(self.token // self.slot.shape[1], self.group - 1)
    rows = example.reshape(-1, self.group * example.shape[1])
    found = jnp.take_along_axis(values.reshape(-1, self.group), rows, axis=1)
    return found.reshape(example.shape)

  def join(self, x: Array) -> Array:
    """Returns the bins, [b / rows, rows * tokens, w], of x [b, tokens, w]."""
    b, n, w = x.shape
    return x.reshape(b // self.rows, self.rows * n, w)

  def part(self, y: Array) -> Array:
    """Returns x of `join`."""
    return y.reshape(*self.token.shape, -1)

  def lengths(self) -> Array:
    """Returns int32[b] of rows of one example each: how many of its slots are filled.

    At least 1, though no token be real, so that no softmax is over nothing.
    """
    return jnp.maximum(jnp.sum(self.real, axis=1, dtype=jnp.int32), 1)

  def segments(self) -> Array:
    """Returns int32[b / rows, rows * tokens]: equal where one example's tokens are.

    Empty slots are a segment, too, so that no softmax is over nothing.
    """
    return self.join(self.token[..., None] // self.slot.shape[1])[..., 0]


def layout(pack: Pack, plan: Array, mask: Array | None, name: str) -> Packed:
  """Returns where tokens go.

  Args:
    pack: the sizes.
    plan: int32[b, 2], of which the first is each example's first slot in its group.
    mask: bool[b, n], True for a real token: these follow each other from there.
    name: of the modality, for error messages.

  Raises:
    ValueError: no mask, another shape of the plan, or a batch without whole groups.
  """
  where = f"config.model.modalities.{name}.pack"
  if mask is None:
    raise ValueError(f"{where} needs the mask {name}_mask, which the batch has not")
  b = len(mask)
  if plan.shape != (b, 2) or b % pack.group:
    raise ValueError(
      f"{name}_pack has shape {plan.shape}, expected {(b, 2)}, b being a multiple of "
      f"{where}.group = {pack.group}"
    )
  return _placed(mask, plan[:, :1].astype(jnp.int32), pack)


def alone(mask: Array | None, shape: tuple[int, ...], multiple: int = 1) -> Packed:
  """Returns a layout of one example a row, its real tokens first, in their order.

  Args:
    mask: bool[b, n], True for a real token; None: all are.
    shape: (b, n).
    multiple: of which the tokens of a row are to be one; its last slots are empty.
  """
  tokens = -(-shape[1] // multiple) * multiple
  start = jnp.zeros((1, 1), jnp.int32)
  real = jnp.ones(shape, bool) if mask is None else mask
  placed = _placed(real, start, Pack(tokens=tokens, rows=1, group=1))
  return dataclasses.replace(placed, whole=mask is None)


def _placed(mask: Array, start: Array, pack: Pack) -> Packed:
  """start: int32[b or 1, 1], the first slot of each example in its group."""
  b, n = mask.shape
  none, slots = pack.group * n, pack.group * pack.tokens
  rank = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
  slot = jnp.where(mask, start + rank, slots)

  def inverse(slot: Array) -> Array:
    empty = jnp.full(slots, none, jnp.int32)
    return empty.at[slot].set(jnp.arange(none, dtype=jnp.int32), mode="drop")

  token = jax.vmap(inverse)(slot.reshape(-1, none)).reshape(b, pack.tokens)
  return Packed(slot, token, rows=pack.rows, group=pack.group)


def metrics(name: str, plan: Array, packed: Packed) -> dict[str, Array]:
  """Returns of a modality the share of its tokens that were cut, and of slots in use.

  Args:
    name: of the modality.
    plan: int32[b, 2], of which the second is how many tokens an example lost.
    packed: of `layout`.
  """
  cut = jnp.sum(plan[:, 1], dtype=jnp.float32)
  kept = jnp.sum(packed.real, dtype=jnp.float32)
  return {
    f"metrics/pack/{name}_cut": cut / jnp.maximum(cut + kept, 1),
    f"metrics/pack/{name}_filled": kept / packed.token.size,
  }


# The gradient of a move is the move back: a gather too. The derivative that JAX would
# take of one is a scatter-add: serial on CPU, slow on TPU.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _move(x: Array, index: Array, inverse: Array, group: int) -> Array:
  """Gathers rows within each group; 0 where the index is beyond them.

  Args:
    x: [b, n, w].
    index: int32[b, m], rows of the group's group * n.
    inverse: int32[b, n], rows of the group's group * m.
    group: examples of a group: none leaves its device.

  Returns:
    [b, m, w].
  """
  del inverse
  rows = x.reshape(-1, group * x.shape[1], x.shape[2])
  at = index.reshape(-1, group * index.shape[1])
  take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
  return jax.vmap(take)(rows, at).reshape(*index.shape, -1)


def _move_forward(x, index, inverse, group):
  return _move(x, index, inverse, group), (index, inverse)


def _move_backward(group, kept, d):
  index, inverse = kept
  return _move(d, inverse, index, group), None, None


_move.defvjp(_move_forward, _move_backward)
