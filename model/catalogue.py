"""File name = config name: find a catalogue entry by importing the module of its name.

There is no registry to keep in step with the files: `load("model.losses", "dcl", ...)`
imports model/losses/dcl.py and builds its `Loss` from the options of the config.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib
import pathlib
import pkgutil
from typing import Any


def names(package: str) -> list[str]:
  """Returns the sorted module names of a package: the names that a config may use."""
  module = importlib.import_module(package)
  return sorted(m.name for m in pkgutil.iter_modules(module.__path__))


def near_misses(word: str, known: list[str]) -> str:
  """Returns "did you mean ...?" for the known words nearest to `word`, else all."""
  close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
  if close:
    return f"did you mean {' or '.join(close)}?"
  return f"known: {', '.join(sorted(known))}"


def find(package: str, name: str, attribute: str) -> Any:
  """Returns `attribute` of the module `package.name`.

  Raises:
    ValueError: no such module, or it does not define `attribute`; lists near misses.
  """
  if not name.isidentifier() or name not in names(package):
    folder = package.replace(".", "/")
    usable = [n for n in names(package) if defines(package, n, attribute)]
    raise ValueError(f"no {name!r} in {folder}/: {near_misses(name, usable)}")
  module = importlib.import_module(f"{package}.{name}")
  if not hasattr(module, attribute):
    raise ValueError(f"{package.replace('.', '/')}/{name}.py defines no {attribute}")
  return getattr(module, attribute)


def build(cls: type, options: Mapping[str, Any], where: str) -> Any:
  """Builds the dataclass `cls` from config options, recursing into no field.

  Lists become tuples, so that frozen dataclasses stay hashable.

  Args:
    cls: a dataclass whose fields are the options it takes.
    options: field name -> value, as the config gives them.
    where: the config key of the options, for the error message.

  Raises:
    ValueError: an option that is no field of `cls`; lists near misses. Or no dataclass.
  """
  if not dataclasses.is_dataclass(cls):
    raise ValueError(
      f"{where}: {cls.__module__}.{cls.__name__} must be a dataclass, whose fields are "
      "its options"
    )
  known = [f.name for f in dataclasses.fields(cls) if f.init]
  for key in options:
    if key not in known:
      raise ValueError(f"unknown key {where}.{key}: {near_misses(key, known)}")
  return cls(**{key: _frozen(value) for key, value in options.items()})


def load(package: str, name: str, attribute: str, options: Mapping[str, Any]) -> Any:
  """Returns `package.name.attribute(**options)`: one catalogue entry, built.

  Raises:
    ValueError: an unknown name or option; lists near misses.
  """
  return build(find(package, name, attribute), options, f"{package}.{name}")


def defines(package: str, name: str, attribute: str) -> bool:
  """Returns whether the file `name` of a package defines the class `attribute`."""
  # Reads the text rather than importing: an optional dependency of one entry must not
  # break the error message about another.
  folder = pathlib.Path(importlib.import_module(package).__path__[0])
  path = folder / f"{name}.py"
  return path.exists() and f"class {attribute}" in path.read_text()


def _frozen(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(_frozen(v) for v in value)
  return value
