"""From a config to batches: what training and the evaluators call.

A batch holds, of this process's rows: each modality of config.model.modalities that the
transforms made ("image" f32[b, h, w, 3], "text" int32[b, n], ...), "<modality>_mask",
"id" int32[b], "index" int32[b] (position in the source), "label_<name>" int32[b], what
a transform declares as `kept`, and in evaluation "valid" bool[b].
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import copy
import dataclasses
import functools
import inspect
from typing import Any

from etils import epath
import numpy as np

from input_pipeline import examples, loader, tokenizer
from input_pipeline.interfaces import Source, Transform
from input_pipeline.loader import EvalBatches, Loader
from model import catalogue
from model.types import example_spec

_SOURCES, _TRANSFORMS = "input_pipeline.sources", "input_pipeline.transforms"
_MOST_CAPTIONS = 2_000_000  # that a tokenizer is trained on


def source(
  config: Any, *, split: str | None = None, options: Mapping[str, Any] | None = None
) -> Source:
  """Returns the raw examples of a split.

  Args:
    config: config.data.source names a file of input_pipeline/sources/.
    split: config.data.split where None.
    options: changes to config.data.options; "source" among them names another source,
      which starts from no options.

  Raises:
    ValueError: an unknown source or option, or a source without examples.
  """
  given, changes = dict(config.data.options), dict(options or {})
  name = changes.pop("source", None)
  if name is None:
    name = config.data.source
  else:
    given = {}
  if not name:
    known = ", ".join(catalogue.names(_SOURCES))
    raise ValueError(f"config.data.source is not set; known: {known}")
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
  make what they need of the captions likewise. Every process may call this: the result
  is the same bytes, and appears at once.

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
  if not path or texts is None:
    return config
  if not epath.Path(path).exists():
    tokenizer.train_tokenizer(_captions(config), path, texts.vocab)
  tokenizer.load(path, texts.vocab)
  return config


def _prepare_transforms(config: Any, workdir: str) -> None:
  """Lets each transform with a `prepare` make its files and change its options."""
  captions = functools.partial(_captions, config)
  for key in ("transforms", "eval_transforms"):
    entries = []
    for name, options in config.data[key]:
      cls = catalogue.find(_TRANSFORMS, name, "Transform")
      if hasattr(cls, "prepare"):
        options = cls.prepare(dict(options or {}), str(workdir), captions)
      entries.append((name, options))
    config.data[key] = tuple(entries)


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
  maker = _maker(config, source(config), "transforms", examples.TRAIN, data.split)
  maker = dataclasses.replace(maker, repeat=data.repeat)
  maker.train_row(0)  # Errors of the config are clearest here, before any thread.
  return Loader(
    maker,
    shape,
    threads=data.threads,
    workers=data.workers,
    prefetch=data.prefetch,
    max_dropped=data.max_dropped,
  )


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
  found = source(config)
  count = min(len(found), _MOST_CAPTIONS)
  for i in range(count):
    try:
      example = found[i * len(found) // count]
    except examples.Drop:
      continue
    captions = example.get("captions", example.get("caption"))
    if captions is None:
      raise ValueError(
        "no captions to train config.data.tokenizer on, nor to make vocabularies of: "
        f"examples of {config.data.source!r} have no 'captions', only {sorted(example)}"
      )
    values = captions.values() if isinstance(captions, Mapping) else (captions,)
    for value in values:
      for text in (value,) if isinstance(value, str | bytes) else _as_iterable(value):
        raw = text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")
        yield raw.decode("utf-8", "replace")


def _as_iterable(value: Any) -> Iterable[Any]:
  return value if isinstance(value, Iterable) else ()
