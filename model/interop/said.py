"""What another library's config says: keys of their kind, held against the arrays."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Said:
  """An object of a config.

  Attributes:
    keys: what it holds.
    place: where it stands, with a dot behind, for messages; "": at the top.
    file: the config's name, for messages.
  """

  keys: Mapping[str, Any]
  place: str = ""
  file: str = "config.json"

  def part(self, key: str) -> "Said":
    """Returns an object inside, without keys if it is null or not there.

    Raises:
      ValueError: something else stands there.
    """
    value = self.keys.get(key)
    if value is not None and not isinstance(value, Mapping):
      raise self.wrong(key, "an object")
    return Said(value or {}, f"{self.place}{key}.", self.file)

  def whole(self, key: str, usual: int, least: int = 1) -> int:
    """Returns a whole number, `usual` if the key is not there.

    Raises:
      ValueError: something else stands there, or less than `least`.
    """
    value = self.keys.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise self.wrong(key, f"a whole number of at least {least}")
    return value

  def number(self, key: str, usual: float) -> float:
    """Returns a number above 0, `usual` if the key is not there.

    Raises:
      ValueError: something else stands there.
    """
    value = self.keys.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise self.wrong(key, "a number above 0")
    if not (value > 0 and math.isfinite(value)):
      raise self.wrong(key, "a number above 0")
    return float(value)

  def one_of(self, key: str, known: Collection[str], usual: str) -> str:
    """Returns a name, `usual` if the key is not there.

    Raises:
      ValueError: none that is known.
    """
    value = self.keys.get(key, usual)
    if not isinstance(value, str) or value not in known:
      raise self.wrong(key, f"one of {', '.join(known)}")
    return value

  def agrees(self, **found: int) -> None:
    """Holds what is said of the model's sizes against its arrays.

    Args:
      **found: key -> what the arrays make; keys that are not there say nothing.

    Raises:
      ValueError: they contradict each other.
    """
    for key, value in found.items():
      if self.keys.get(key, value) != value:
        raise self._other(key, value)

  def tiled(self, patch: Sequence[int], size: Sequence[int]) -> None:
    """Holds what is said of images and their patches against the arrays.

    Pixels that fill no patch are not seen, hence in no array.

    Args:
      patch: height and width of the patches.
      size: height, width, ... of the images that so many positions are read as.

    Raises:
      ValueError: they contradict each other.
    """
    if _pair(self.keys.get("patch_size", tuple(patch))) != tuple(patch):
      raise self._other("patch_size", tuple(patch))
    said = _pair(self.keys.get("image_size", tuple(size[:2])))
    grid = [side // part for side, part in zip(size, patch, strict=False)]
    if not said or [side // part for side, part in zip(said, patch)] != grid:
      raise self._other("image_size", tuple(size[:2]))

  def wrong(self, key: str, wanted: str) -> ValueError:
    """Returns the error of a key of another kind."""
    return ValueError(f"{self._has(key)}, expected {wanted}")

  def _other(self, key: str, value: Any) -> ValueError:
    return ValueError(
      f"{self._has(key)}, and the arrays make {value}: the checkpoint is not whole, or "
      "its config is another model's"
    )

  def _has(self, key: str) -> str:
    return f"{self.file} has {self.place}{key} = {self.keys.get(key)!r}"


def _pair(value: Any) -> tuple[int, ...]:
  """Returns (height, width), () if the value is neither a number nor two."""
  pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
  whole = all(isinstance(side, int) and side > 0 for side in pair)
  return pair if whole and len(pair) == 2 else ()
