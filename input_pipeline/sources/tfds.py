"""TFDS datasets, read at random from ArrayRecord files, without TensorFlow.

Prepare one with `tfds build --file_format=array_record`: that may need TensorFlow, once
and on any machine. Reading does not.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example
from model import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """One split of a TFDS dataset that is prepared as ArrayRecord.

  Image features arrive encoded (`decode_image` takes them); texts as str; labels as
  int. `classes` holds the names of those that are ClassLabel features.

  Attributes:
    name: as in `tfds.builder(name)`, "coco_captions/2014" say, or the folder of a
      prepared dataset.
    split: any TFDS split, slices such as "train[:90%]" included.
    data_dir: where it is prepared; "" is TFDS's own default.
    features: feature -> key of the example, as a mapping or as pairs. A feature inside
      another is "outer/inner"; within a sequence, it is a tuple. () keeps every
      top-level feature under its own name.

  Raises:
    ValueError: no such dataset on this machine, another file format, or a feature
      that it does not have.
  """

  name: str
  split: str = "train"
  data_dir: str = ""
  features: Any = ()

  def __post_init__(self):
    # Of one form, hashable and picklable, whatever the config gave.
    given = self.features
    items = given.items() if hasattr(given, "items") else given
    object.__setattr__(self, "features", tuple((str(a), str(b)) for a, b in items))
    known = list(self._builder.info.features)
    for feature, _ in self.features:
      if feature.split("/")[0] not in known:
        raise ValueError(
          f"config.data.options.features: {self.name} has no {feature!r}; "
          f"{catalogue.near_misses(feature, known)}"
        )

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _builder(self) -> Any:
    if not self.name:
      raise ValueError("name the TFDS dataset in config.data.options.name")
    import tensorflow_datasets as tfds  # a second to import: only for those who use it

    try:
      if "/" in self.name and (tfds.core.Path(self.name) / "features.json").exists():
        return tfds.builder_from_directory(self.name)
      return tfds.builder(self.name, data_dir=self.data_dir or None, try_gcs=False)
    except Exception as e:  # TFDS has a type of its own for each way not to find it
      raise ValueError(
        f"config.data.options.name = {self.name!r} is not a TFDS dataset here "
        f"(data_dir {self.data_dir or 'default'}): {str(e).splitlines()[0]}"
      ) from e

  @functools.cached_property
  def _reader(self) -> Any:
    import tensorflow_datasets as tfds

    features = self._builder.info.features
    skip = {
      name: tfds.decode.SkipDecoding()
      for name, feature in features.items()
      if isinstance(feature, tfds.features.Image)
    }
    try:
      return self._builder.as_data_source(self.split, decoders=skip or None)
    except Exception as e:
      raise ValueError(
        f"{self.name}, split {self.split!r}, cannot be read at random: "
        f"{str(e).splitlines()[0]} Prepare it with --file_format=array_record."
      ) from e

  @functools.cached_property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> class names, of ClassLabels kept as label_<name>."""
    found = {}
    info = self._builder.info.features
    for feature, key in self.features or ((name, name) for name in info):
      names = getattr(info[feature], "names", None) if feature in info else None
      if names and key.startswith("label_"):
        found[key.removeprefix("label_")] = tuple(names)
    return found

  def __len__(self) -> int:
    return len(self._reader)

  def __getitem__(self, i: int) -> Example:
    try:
      raw = self._reader[i]
    except IndexError:
      raise
    except Exception as e:  # damaged files surface as whatever decodes them first
      raise Drop("unreadable record") from e
    pairs = self.features or tuple((name, name) for name in raw)
    return {key: _plain(_inner(raw, feature)) for feature, key in pairs}


def _inner(raw: Mapping[str, Any], feature: str) -> Any:
  value: Any = raw
  for part in feature.split("/"):
    value = [v[part] for v in value] if isinstance(value, list) else value[part]
  return value


def _plain(value: Any) -> Any:
  """Returns arrays of one value as int or float, arrays of texts as tuples."""
  if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
    return tuple(value.ravel().tolist()) if value.ndim else value.item()
  if isinstance(value, list):
    return tuple(_plain(v) for v in value)
  return value.item() if isinstance(value, np.generic) else value
