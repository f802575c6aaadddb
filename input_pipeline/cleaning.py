"""What other libraries do to a text before they tokenize it, by name.

`config.data.transforms` names one in the option `clean` of `tokenize`, so that a model
reads what it was trained on. The last three are open_clip's.
"""

from collections.abc import Callable
import html
import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def none(text: str) -> str:
  """Returns the text as it is."""
  return text


def lowercase(text: str) -> str:
  """Returns the text in lower case (SigLIP 2, arXiv 2502.14786)."""
  return text.lower()


def plain(text: str) -> str:
  """Returns it in lower case, without ASCII punctuation; spaces are one each.

  SigLIP's in transformers.
  """
  return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def mended(text: str) -> str:
  """Returns it with mojibake and HTML entities undone; spaces are one each.

  Raises:
    ImportError: ftfy is not installed.
  """
  try:
    import ftfy
  except ImportError as e:
    raise ImportError(
      "texts of this model are mended by ftfy before they are tokenized: "
      "pip install ftfy, or set another `clean` of tokenize in config.data.transforms"
    ) from e
  return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def mended_lowercase(text: str) -> str:
  """Returns `mended` in lower case (CLIP, arXiv 2103.00020)."""
  return mended(text).lower()


def mended_plain(text: str) -> str:
  """Returns `mended` and `plain`, underscores being spaces (SigLIP, 2303.15343)."""
  return plain(mended(text).replace("_", " "))


CLEAN: dict[str, Callable[[str], str]] = {
  f.__name__: f
  for f in (none, lowercase, plain, mended, mended_lowercase, mended_plain)
}
