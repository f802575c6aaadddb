"""Text cut into bars or lines, each one patch of letters: symbolic music (CLaMP).

Bars of ABC notation, as in arXiv 2304.11029 (section 3.1). The letters' ids are their
UTF-8 bytes, of which ABC uses the lower half: no tokenizer to train.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

# | || |] [| |: :| :: :|: and first and second endings.
_BAR_LINE = re.compile(r"\[\||::|:?\|[\]|:]*(?:\[?[0-9])?")
_FIELD = re.compile(r"(?:[A-Za-z]:|%)")  # a line of its own: "K:C", "w: la la", "%%..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<modality>` int32[length, chars] and `<modality>_mask` bool[length].

  0 is padding: of letters in a patch, and of patches. A bar or line that is longer than
  a patch goes on in the next one; what is beyond the last patch is cut.

  Drops "empty text" and "text is not UTF-8".

  Attributes:
    length: patches; taken from config.model.modalities.<modality>.length.
    chars: letters of a patch; taken from its patch.
    vocab: number of ids; taken from it too. Bytes of vocab - 1 and more share that id.
    by: what a patch is: "bars" of ABC notation, each of its other lines being one too,
      or "lines".
    modality: what it writes.
    source: what it reads: str or UTF-8 bytes.
  """

  length: int
  chars: int
  vocab: int = 128
  by: str = "bars"
  modality: str = "music"
  source: str = "abc"

  def __post_init__(self):
    if self.by not in ("bars", "lines"):
      raise ValueError(f"text_patches.by = {self.by!r}, expected 'bars' or 'lines'")

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns length, chars and vocab of the modality."""
    modality = config.model.modalities.get(options.get("modality", "music"))
    if modality is None or len(modality.patch) != 1:
      return {}
    given = {"length": modality.length, "chars": modality.patch[0]}
    return given | {"vocab": modality.vocab}

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the text."""
    return (self.source,)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the patches and of their mask."""
    return (self.modality, f"{self.modality}_mask")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with ids and mask; the text is left out."""
    del rng
    text = example[self.source]
    if isinstance(text, bytes):
      text = untrusted.text(text)
    if not isinstance(text, str) or not text.strip():
      raise Drop("empty text")
    if not untrusted.is_utf8(text):
      raise Drop("text is not UTF-8")
    # No more letters than the patches hold, each perhaps of two, "\r\n": whatever else
    # there is costs no time.
    held = self.length * self.chars
    text = text.strip()[: 2 * held].replace("\r\n", "\n")[:held]
    out = np.zeros((self.length, self.chars), np.int32)
    n = 0
    for part in bars(text) if self.by == "bars" else text.splitlines(keepends=True):
      ids = np.frombuffer(part.encode(), np.uint8).astype(np.int32)
      ids = np.minimum(ids[ids > 0], self.vocab - 1)
      for start in range(0, len(ids), self.chars):
        if n == self.length:
          break
        piece = ids[start : start + self.chars]
        out[n, : len(piece)] = piece
        n += 1
    if not n:
      raise Drop("empty text")
    example = {k: v for k, v in example.items() if k != self.source}
    mask = np.arange(self.length) < n
    return example | {self.modality: out, f"{self.modality}_mask": mask}


def bars(text: str) -> list[str]:
  """Returns the lines of fields and the bars of a tune; joined they are the text.

  A bar has the bar line that ends it, and one before it only where a line of the text
  begins with that.
  """
  found: list[str] = []
  for line in text.splitlines(keepends=True):
    start = 0
    ends = () if _FIELD.match(line) else _BAR_LINE.finditer(line)
    for end in (m.end() for m in ends if line[start : m.start()].strip()):
      found.append(line[start:end])
      start = end
    rest = line[start:]
    if rest.strip() or not start:
      found.append(rest)
    else:  # the end of the line
      found[-1] += rest
  return found
