"""Parses what follows the colon of `--config configs/x.py:runlocal,data=my_tfds`."""

import difflib

from ml_collections import ConfigDict


def parse(arg: str, **defaults) -> ConfigDict:
  """Returns `defaults` changed by `arg`: "flag,key=value,..." with the defaults' types.

  Raises:
    ValueError: an unknown name (near misses are listed) or a value of another type.
  """
  out = ConfigDict(defaults, type_safe=False)
  for part in filter(None, (p.strip() for p in (arg or "").split(","))):
    key, given, value = part.partition("=")
    if key not in defaults:
      close = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5)
      hint = f" did you mean {' or '.join(close)}?" if close else ""
      known = ", ".join(f"{k}={v!r}" for k, v in defaults.items())
      raise ValueError(f"unknown recipe argument {key!r}:{hint} (known: {known})")
    out[key] = _as_type_of(defaults[key], value, part) if given else True
  return out


def _as_type_of(default, value: str, part: str):
  if isinstance(default, bool):
    if value.lower() in ("1", "true", "yes"):
      return True
    if value.lower() in ("0", "false", "no"):
      return False
    raise ValueError(f"recipe argument {part!r}: expected true or false")
  try:
    return type(default)(value)
  except ValueError as e:
    kind = type(default).__name__
    raise ValueError(f"recipe argument {part!r}: {value!r} is not {kind}") from e
