"""The texts of raw examples: what tokenizers and vocabularies are made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example, Source

_MOST = 2_000_000  # examples of all sources together whose texts are looked at


def every(sources: Sequence[Source]) -> Iterator[str]:
  """Yields every wording of some sources, or of evenly spaced examples of many.

  Sources without captions are passed over.

  Raises:
    ValueError: no source has any; says what its examples hold.
  """
  without: list[list[str]] = []
  for found in sources:
    count = min(len(found), _MOST // len(sources))
    for i in range(count):
      try:
        example = found[i * len(found) // count]
      except Drop:
        continue
      if _captions(example) is None:
        without.append(sorted(example))
        break
      yield from wordings(example)
  if len(without) == len(sources):
    raise ValueError(
      "no captions to train config.data.tokenizer on, nor to make vocabularies of: "
      "examples of config.data.source have no 'captions', only "
      f"{' or '.join(map(str, without))}"
    )


def wordings(example: Example) -> Iterator[str]:
  """Yields the captions of an example, in all languages; none if it has none."""
  yield from texts(_captions(example))


def texts(value: Any) -> Iterator[str]:
  """Yields what captions hold: one text or several, or some of each language."""
  for part in value.values() if isinstance(value, Mapping) else (value,):
    for text in (part,) if isinstance(part, str | bytes) else _as_iterable(part):
      raw = text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")
      yield raw.decode("utf-8", "replace")


def _captions(example: Example) -> Any:
  return example.get("captions", example.get("caption"))


def _as_iterable(value: Any) -> Iterable[Any]:
  return value if isinstance(value, Iterable) else ()
