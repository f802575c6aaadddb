"""config.data.mixture: several sources, each with what it changes of config.data.

mixture = (
  ("photos", 0.8, dict(source="webdataset", options=dict(paths="..."))),
  ("captions", ((0, 0.2), (1_000_000, 0.4)), dict(transforms=...)),
)
"""

from collections.abc import Mapping
import copy
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.interleave import Schedule
from model import catalogue

_WHERE = "config.data.mixture"
# What an entry may change of config.data; `ids` is its own.
_CHANGES = (
  *("source", "options", "split", "transforms", "eval_transforms", "max_dropped"),
  "ids",
)


class Entry(NamedTuple):
  """A source of the mixture.

  Attributes:
    name: of the source; "" where config.data describes the only one.
    weight: a number or a schedule; see input_pipeline.interleave.
    config: the whole config as it would be for this source alone.
    ids: sources of equal `ids` mean the same by equal ids.
  """

  name: str
  weight: Schedule
  config: Any
  ids: str


def entries(config: Any) -> tuple[Entry, ...]:
  """Returns the sources of a config, one without a name if it has no mixture.

  Raises:
    ValueError: an entry that is none, a name given twice, or an unknown key.
  """
  if not config.data.get("mixture"):
    return (Entry("", 1.0, config, ""),)
  out: list[Entry] = []
  for i, entry in enumerate(config.data.mixture):
    changes = None if isinstance(entry, str) else entry[-1]
    if len(entry) != 3 or not isinstance(changes, Mapping | ConfigDict):
      raise ValueError(
        f"{_WHERE}[{i}] = {entry!r} must be (name, weight, changes of config.data)"
      )
    name, weight, _ = entry
    if not name or not isinstance(name, str) or "/" in name:
      raise ValueError(f"{_WHERE}[{i}]: {name!r} is no name; it must not hold a /")
    if name in [e.name for e in out]:
      raise ValueError(f"{_WHERE} has two sources named {name!r}")
    for key in changes:
      if key not in _CHANGES:
        raise ValueError(
          f"{_WHERE}: unknown key {key!r} of {name!r}: "
          f"{catalogue.near_misses(key, list(_CHANGES))}"
        )
    out.append(Entry(name, weight, _alone(config, changes), changes.get("ids", name)))
  return tuple(out)


def named(
  config: Any, options: Mapping[str, Any] | None
) -> tuple[Any, Mapping[str, Any]]:
  """Returns the config of the source of the mixture that options["source"] names.

  Without one, the config as it is. What remains of the options comes with it.
  """
  options = dict(options or {})
  for entry in entries(config) if "source" in options else ():
    if entry.name and entry.name == options["source"]:
      del options["source"]
      return entry.config, options
  return config, options


def _alone(config: Any, changes: Mapping[str, Any]) -> Any:
  """Returns the config with the changes of one source, and without the mixture."""
  config = copy.deepcopy(config)
  data = {k: v for k, v in changes.items() if k not in ("ids", "options")}
  options = {} if "source" in changes else dict(config.data.options)
  options |= dict(changes.get("options", {}))
  with config.unlocked():
    config.data.update(data)
    config.data.mixture = ()
    config.data.options = ConfigDict(options)
  return config
