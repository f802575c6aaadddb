"""From a config to batches: what training and the evaluators call.

A batch holds, of this process's rows: each modality of config.model.modalities that the
transforms made ("image" f32[b, h, w, 3], "text" int32[b, n], ...), "<modality>_mask",
"id" int32[b], "index" int32[b] (position in the source), "label_<name>" int32[b], what
a transform declares as `kept`, and in evaluation "valid" bool[b]. In training also
"<modality>_pack" int32[b, 2] of what is packed (input_pipeline/packing.py). In a
mixture also "label_source" int32[b] and, where sources hold different modalities,
"<modality>_valid" bool[b]; "index" then counts through all sources.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import copy
import dataclasses
from fractions import Fraction
import functools
import inspect
from typing import Any

from etils import epath
import numpy as np

from input_pipeline import (
  buckets,
  captions,
  examples,
  loader,
  mixture,
  packing,
  tokenizer,
)
from input_pipeline.interfaces import Source, Transform
from input_pipeline.interleave import Interleave, scaled
from input_pipeline.loader import EvalBatches, Loader
from input_pipeline.stream import Member, Stream
from input_pipeline.transforms import tokenize as tokenizing
from model import catalogue
from model.shapes import example_spec

_SOURCES, _TRANSFORMS = "input_pipeline.sources", "input_pipeline.transforms"


def source(
  config: Any, *, split: str | None = None, options: Mapping[str, Any] | None = None
) -> Source:
  """Returns the raw examples of a split.

  Args:
    config: config.data.source names a file of input_pipeline/sources/.
    split: config.data.split where None.
    options: changes to config.data.options; "source" among them names a source of
      config.data.mixture, or another one, which starts from no options.

  Raises:
    ValueError: an unknown source or option, or a source without examples.
  """
  config, options = mixture.named(config, options)
  given, changes = dict(config.data.options), dict(options or {})
  name = changes.pop("source", None)
  if name is None:
    name = config.data.source
  else:
    given = {}
  if not name:
    known = ", ".join(catalogue.names(_SOURCES))
    mixed = [entry.name for entry in mixture.entries(config) if entry.name]
    which = f" nor, by its options' source, one of config.data.mixture {mixed}"
    raise ValueError(
      f"config.data.source is not set{which if mixed else ''}; known: {known}"
    )
  split = config.data.split if split is None else split
  cls = catalogue.find(_SOURCES, name, "Source")
  built = catalogue.build(
    cls, given | changes | {"split": split}, "config.data.options"
  )
  if not len(built):
    raise ValueError(f"split {split!r} of {name!r} has no examples")
  return built


def transforms(config: Any, key: str) -> tuple[tuple[str, Transform], ...]:
  """Returns the (name, transform) of config.data.<key>, in order.

  Options that the recipe leaves out may come from elsewhere in the config: sizes from
  the model's modalities, the tokenizer from config.data.tokenizer.
  """
  built = []
  for name, given in config.data[key]:
    cls = catalogue.find(_TRANSFORMS, name, "Transform")
    options = dict(given or {})
    if hasattr(cls, "defaults"):
      options = cls.defaults(config, options) | options
    where = f"config.data.{key}: {name}"
    needed = [
      p.name
      for p in inspect.signature(cls).parameters.values()
      if p.default is p.empty and p.name not in options
    ]
    if needed:
      raise ValueError(f"{where} needs the options {needed}; got {sorted(options)}")
    built.append((name, catalogue.build(cls, options, where)))
  return tuple(built)


def prepare(config: Any, workdir: str) -> Any:
  """Returns a copy of the config whose tokenizer exists: it is trained where missing.

  "{workdir}" in config.data.tokenizer is replaced. The tokenizer is trained on the
  captions of config.data.split, to config.model.modalities.text.vocab ids. Transforms
  make what they need of the captions likewise, and texts and images are measured for
  config.data.buckets and .image_sizes. Every process may call this: the result is the
  same bytes, and appears at once.

  Raises:
    ValueError: the tokenizer's size is not the model's vocabulary, or the examples have
      no captions to train one on.
  """
  config = copy.deepcopy(config)
  _prepare_transforms(config, workdir)
  path = str(config.data.tokenizer).replace("{workdir}", str(workdir))
  if path != config.data.tokenizer:
    config.data.tokenizer = path
  texts = config.model.modalities.get("text")
  if path and texts is not None:
    if not epath.Path(path).exists():
      tokenizer.train_tokenizer(_captions(config), path, texts.vocab)
    tokenizer.load(path, texts.vocab)
  if config.data.get("buckets") or config.data.get("image_sizes"):
    folder = str(config.data.lengths).replace("{workdir}", str(workdir))
    config.data.lengths = folder
    for entry in mixture.entries(config):
      _measure(entry)
  return config


def _measure(entry: mixture.Entry) -> dict[str, np.ndarray]:
  """Returns the measures of a source, and keeps them in config.data.lengths."""
  data = entry.config.data
  found, reads = source(entry.config), []
  if data.buckets and "text" in entry.config.model.modalities:
    reads = buckets.readers(transforms(entry.config, "transforms"))
  told = dict(source=data.source, options=dict(data.options), split=data.split)
  made_by = buckets.stamp(found, reads, told)
  path = f"{data.lengths}/{entry.name or 'all'}.npz"
  measured = buckets.read(path, made_by)
  if measured is None:
    measured = buckets.measure(found, reads)
    if "{workdir}" not in path:
      buckets.save(path, measured, made_by)
  return measured


def _prepare_transforms(config: Any, workdir: str) -> None:
  """Lets each transform with a `prepare` make its files and change its options."""
  texts = functools.partial(_captions, config)

  def prepared(transforms: Iterable[Any]) -> tuple[Any, ...]:
    entries = []
    for name, options in transforms:
      cls = catalogue.find(_TRANSFORMS, name, "Transform")
      if hasattr(cls, "prepare"):
        options = cls.prepare(dict(options or {}), str(workdir), texts)
      entries.append((name, options))
    return tuple(entries)

  keys = ("transforms", "eval_transforms")
  for key in keys:
    config.data[key] = prepared(config.data[key])
  config.data.mixture = tuple(
    (name, weight, {k: prepared(v) if k in keys else v for k, v in changes.items()})
    for name, weight, changes in config.data.get("mixture", ())
  )


def tokenize(
  config: Any, texts: Sequence[str], *, modality: str = "text"
) -> dict[str, np.ndarray]:
  """Returns `modality` int32[b, n] and its mask bool[b, n], as evaluation makes it.

  Raises:
    ValueError: no such tokenize in config.data.eval_transforms, or a blank text.
  """
  made = [t for name, t in transforms(config, "eval_transforms") if name == "tokenize"]
  made = [t for t in made if getattr(t, "modality", "") == modality]
  if not made:
    raise ValueError(f"config.data.eval_transforms: no tokenize for {modality!r}")
  rng = np.random.default_rng(0)
  rows = []
  for text in texts:
    try:
      rows.append(made[0]({made[0].reads[0]: text}, rng) or {})
    except examples.Drop as e:
      raise ValueError(f"cannot tokenize {text!r}: {e.reason}") from e
  return {key: np.stack([row[key] for row in rows]) for key in made[0].writes}


def train_loader(config: Any, *, process_index: int, process_count: int) -> Loader:
  """Returns this process's rows of the endless stream of global training batches.

  Raises:
    ValueError: config.batch_size is not divisible by the processes or by
      config.data.repeat, or the data or its transforms do not suit each other or the
      model.
  """
  data = config.data
  shape = loader.Shape(config.batch_size, process_index, process_count)
  if data.repeat < 1 or config.batch_size % data.repeat:
    raise ValueError(
      f"config.data.repeat = {data.repeat} must be at least 1 and divide "
      f"config.batch_size = {config.batch_size}: a batch holds whole bags"
    )
  entries = mixture.entries(config)
  return Loader(
    _stream(config, entries),
    shape,
    threads=data.threads,
    workers=data.workers,
    prefetch=data.prefetch,
    max_dropped={e.name: e.config.data.max_dropped for e in entries},
    packers=packing.packers(config),
  )


def _stream(config: Any, entries: Sequence[mixture.Entry]) -> Stream:
  """Returns the training stream of some sources."""
  members, weights, first = [], [], 0
  spaces = list(dict.fromkeys(entry.ids for entry in entries))
  for number, (name, weight, alone, ids) in enumerate(entries):
    found = source(alone)
    maker = _maker(alone, found, "transforms", examples.TRAIN, alone.data.split)
    maker = dataclasses.replace(maker, repeat=config.data.repeat, name=name)
    for part, share in _parts(maker, entries[number]):
      members.append(Member(part, number, first, spaces.index(ids), len(spaces)))
      weights.append(scaled(weight, share))
    first += len(found)
  data = config.data
  alike = data.single_source or data.buckets or data.image_sizes
  block = config.batch_size if alike else config.data.repeat
  # Reads an example of each: errors of the config are clearest before any thread.
  return Stream.of(members, Interleave(tuple(weights), block))


def _parts(
  maker: examples.Maker, entry: mixture.Entry
) -> Iterator[tuple[examples.Maker, Fraction]]:
  """Yields the source, or its parts by text and image, and their shares of it."""
  data, modalities = entry.config.data, entry.config.model.modalities
  lengths: tuple[int, ...] = ()
  sizes: tuple[buckets.Size, ...] = ()
  if data.buckets:
    lengths = buckets.lengths(data.buckets, modalities.text.length)
  if data.image_sizes:
    sizes = buckets.sizes(data.image_sizes, modalities.image.size[:2])
  if not lengths and not sizes:
    yield maker, Fraction(1)
    return
  for name, rows, length, size in buckets.parts(_measure(entry), lengths, sizes):
    sized = copy.deepcopy(entry.config)
    if length:
      sized.model.modalities.text.length = length
    if size:
      sized.model.modalities.image.size = (*size, *modalities.image.size[2:])
    shapes = _maker(sized, maker.source, "transforms", maker.stream, "").shapes
    made = tuple((n, _fitted(t, length, size, sizes)) for n, t in maker.transforms)
    part = dataclasses.replace(
      maker, part=name, rows=rows, transforms=made, shapes=shapes
    )
    yield part, Fraction(len(rows), len(maker))


def _fitted(
  t: Any, length: int, size: buckets.Size, sizes: Sequence[buckets.Size]
) -> Transform:
  """Returns the transform, making texts of `length` and images of `size` if set."""
  if length and isinstance(t, tokenizing.Transform) and t.modality == "text":
    return dataclasses.replace(t, length=length)
  if size and tuple(getattr(t, "size", ())) == sizes[0]:  # of the model
    return dataclasses.replace(t, size=size)
  return t


def eval_batches(
  config: Any,
  *,
  split: str,
  batch_size: int,
  process_index: int,
  process_count: int,
  options: Mapping[str, Any] | None = None,
) -> EvalBatches:
  """Returns the padded batches of a split, to be iterated as often as one likes.

  Args:
    config: its config.data.eval_transforms are applied.
    split: of the source.
    batch_size: global.
    process_index: of this process.
    process_count: which divides batch_size.
    options: changes to the source's options, as in `source`.

  Raises:
    ValueError: as in `train_loader`.
  """
  config, options = mixture.named(config, options)
  data = config.data
  shape = loader.Shape(batch_size, process_index, process_count, "batch_size")
  found = source(config, split=split, options=options)
  maker = _maker(config, found, "eval_transforms", examples.EVAL, split)
  return EvalBatches(
    maker,
    shape,
    threads=data.threads,
    prefetch=data.prefetch,
    max_dropped=data.max_dropped,
  )


def _maker(
  config: Any, found: Source, key: str, stream: int, split: str
) -> examples.Maker:
  if config.seed < 0:
    raise ValueError(f"config.seed = {config.seed} is negative")
  shapes = {name: example_spec(m) for name, m in config.model.modalities.items()}
  made = transforms(config, key)
  return examples.Maker(found, made, shapes, int(config.seed), stream, split)


def _captions(config: Any) -> Iterator[str]:
  """Yields every wording of the training captions, or of evenly spaced ones of many."""
  return captions.every([source(entry.config) for entry in mixture.entries(config)])
