"""A trained or converted model in a few lines: embeddings, labels, retrieval.

  from training import pretrained

  model = pretrained.load("runs/clip")
  z = model.embed(image=pictures, text=["a cat", "a dog"])  # {"image": f32[n, d], ...}
  p = model.classify(image=pictures, classes=["cat", "dog"])  # f32[n, 2]
  table = model.retrieval(image=pictures, text=captions)  # {"i2t_r1": 0.7, ...}

Pictures are PIL images, paths, encoded bytes or uint8 arrays; texts are str. They go
through config.data.eval_transforms, as in evaluation.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from evaluators import context as context_lib
from evaluators import gallery, retrieval, zero_shot
from input_pipeline import examples, images, pipeline
from sharding import mesh as meshes
from sharding import rules
from training import checkpoint, foreign, step
from training import setup as setup_lib

BATCH = 64  # rows encoded at a time, and more where the mesh asks for it
TEMPLATES = ("a photo of a {}.",)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model and its parameters on a mesh; make it with `load`.

  Several processes must all call the same methods with the same inputs.

  Attributes:
    config: of the model, and of what is done to its inputs.
    params: {"towers": ..., "objective": ...}, placed on the mesh.
    context: as evaluators take it: `evaluator.run(model.params)`.
  """

  config: ConfigDict = dataclasses.field(repr=False)
  params: Mapping[str, Any] = dataclasses.field(repr=False)
  context: context_lib.Context = dataclasses.field(repr=False)

  def embed(self, **inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """Returns modality -> f32[n, d] of unit length, rows in the order of the inputs.

    Args:
      **inputs: modality -> examples: texts for ids, pictures for `image`; for any other
        modality arrays as the towers read them. Numbers of rows may differ.

    Raises:
      ValueError: a modality that the model lacks, no rows, or an input that the
        transforms drop, and why.
    """
    return {m: self._embed(m, rows) for m, rows in inputs.items()}

  def classify(
    self,
    *,
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    text: str = "text",
    **inputs: Sequence[Any],
  ) -> np.ndarray:
    """Returns f32[n, c]: how likely each class is for each example of one modality.

    A softmax over the classes; of a model trained with the sigmoid loss, a sigmoid for
    each class by itself. Classes are the mean of their prompts (arXiv 2103.00020).

    Args:
      classes: names.
      templates: prompts, with {} for the name.
      text: the modality of the prompts.
      **inputs: one modality and its examples, as of `embed`.

    Raises:
      ValueError: no classes, a template without {}, or as of `embed`.
    """
    if len(inputs) != 1:
      raise ValueError(f"classify takes one modality, got {sorted(inputs)}")
    if not len(classes) or not templates or any("{}" not in t for t in templates):
      raise ValueError(
        f"classify got classes = {list(classes)} and templates = {list(templates)}, "
        "expected at least one of each, with {} for the class"
      )
    prompts = [t.format(name) for name in classes for t in templates]
    z = self._embed(text, prompts).reshape(len(classes), len(templates), -1)
    (queries,) = self.embed(**inputs).values()
    logits = queries @ zero_shot.class_embeddings(z).T
    own = self.params["objective"]
    if "siglip" in own:
      logits = logits * np.exp(own["siglip"]["log_scale"]) + own["siglip"]["bias"]
      return np.asarray(jax.nn.sigmoid(logits), np.float32)
    scale = float(own.get("infonce", {}).get("log_scale", np.log(100.0)))
    return np.asarray(jax.nn.softmax(logits * np.float32(np.exp(scale))), np.float32)

  def retrieval(
    self,
    *,
    ids: Mapping[str, Sequence[int]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    **inputs: Sequence[Any],
  ) -> dict[str, float]:
    """Returns R@k, median rank and mean reciprocal rank, in both directions.

    Args:
      ids: modality -> which rows belong together: those of equal ids. None: row i of
        one and row i of the other.
      ks: of the recalls.
      **inputs: two modalities and their examples, as of `embed`.

    Raises:
      ValueError: not two modalities, rows that cannot be matched, or as of `embed`.
    """
    if len(inputs) != 2:
      raise ValueError(f"retrieval takes two modalities, got {sorted(inputs)}")
    z = self.embed(**inputs)
    given = ids or {m: range(len(x)) for m, x in z.items()}
    places = {m: np.asarray(given[m]) for m in z}
    sizes = {m: (len(z[m]), len(places[m])) for m in z}
    if any(n != k for n, k in sizes.values()) or not (
      ids or len({len(x) for x in z.values()}) == 1
    ):
      raise ValueError(
        f"retrieval got (rows, ids) = {sizes}: expected as many ids as rows, and "
        "without ids as many rows of one modality as of the other"
      )
    table = {}
    for a, b in (tuple(z), tuple(z)[::-1]):
      found = gallery.rank(z[a], z[b], places[a], places[b], mesh=self.context.mesh)
      for key, value in retrieval.summarise(found, len(z[b]), ks).items():
        table[f"{retrieval.direction(a, b, tuple(z))}_{key}"] = value
    return table

  def _embed(self, modality: str, given: Sequence[Any]) -> np.ndarray:
    known = self.config.model.modalities
    if modality not in known:
      raise ValueError(f"no modality {modality!r}, the model has {sorted(known)}")
    if isinstance(given, str | bytes) or not len(given):
      raise ValueError(f"{modality} = {given!r}: expected a sequence of examples")
    batch = self.config.batch_size
    parts = []
    for start in range(0, len(given), batch):
      rows = [self._row(modality, x) for x in given[start : start + batch]]
      stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
      # A power of two times what the mesh needs: few sizes, hence few compilations.
      size = self._unit()
      while size < len(rows):
        size *= 2
      z = context_lib.encode_rows(self.context, self.params, stacked, size)
      parts.append(z[modality])
    return np.concatenate(parts)

  def _row(self, modality: str, value: Any) -> dict[str, np.ndarray]:
    """Returns one example as the towers read it, and its mask if it has one."""
    try:
      if self.config.model.modalities[modality].stem == "tokens":
        return self._tokenized(modality, value)
      if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return {modality: value}
      return {modality: self._image(modality, value)}
    except examples.Drop as e:
      raise ValueError(f"{modality} {str(value)[:80]!r}: {e.reason}") from e

  def _tokenized(self, modality: str, text: Any) -> dict[str, np.ndarray]:
    for name, t in self._transforms:
      if name == "tokenize" and getattr(t, "modality", "") == modality:
        break
    else:
      raise ValueError(
        f"config.data.eval_transforms has no tokenize for {modality!r}: the model came "
        "without a tokenizer. Convert it with --tokenizer (see tools/convert.py)"
      )
    try:
      out = t({t.reads[0]: text}, _rng()) or {}
    except examples.Drop as e:
      if e.reason != "empty caption":
        raise
      out = t.blank()  # peers embed it, too
    return {key: out[key] for key in t.writes}

  def _image(self, modality: str, value: Any) -> np.ndarray:
    example = {"image": _pixels(value)}
    for _, t in self._transforms:
      # Those that need nothing but the picture.
      if all(set(key.split("|")) & set(example) for key in t.reads):
        example = t(example, _rng())
    return example[modality]

  @functools.cached_property
  def _transforms(self) -> tuple[tuple[str, Any], ...]:
    return pipeline.transforms(self.config, "eval_transforms")

  def _unit(self) -> int:
    return _unit(self.config, self.context.mesh)


def load(
  path: str | pathlib.Path,
  *,
  mesh: Mapping[str, int] | None = None,
  devices: Sequence[Any] | None = None,
  tokenizer: str = "",
) -> Pretrained:
  """Loads a model for `embed`, `classify` and `retrieval`.

  Args:
    path: the workdir of a run (its newest checkpoint, averaged parameters if it has
      them), what `tools.convert` wrote, or a folder of transformers or open_clip.
    mesh: axis -> size, as config.mesh; None: the batch is split over the devices.
    devices: all by default; `jax.devices()[:1]` is one.
    tokenizer: file or folder, for another library's model that has none beside it.

  Raises:
    FileNotFoundError, ValueError: no model there, or one that cannot be read.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such folder")
  if checkpoint.is_checkpoint(path):
    config, params = _own(path)
  else:
    read = foreign.read(path, tokenizer_at=tokenizer)
    config, params = read.config, read.params
    if read.words:
      config.data.tokenizer = str(foreign.keep(read.words))
  params = {"objective": {}, **params}  # single towers come without
  ones = dict(data=1, fsdp=1, expert=1, tensor=1)
  config.mesh = ConfigDict(ones | dict(mesh or dict(data=-1)))
  unit = _unit(config, meshes.make(config.mesh, devices))
  config.batch_size, config.microbatches = -(-BATCH // unit) * unit, 1
  config.frozen_from = ""
  setup = setup_lib.build(config, devices)
  placed = jax.device_put(
    params, rules.specs(params, setup.mesh, config.sharding.rules)
  )
  context = context_lib.Context(
    mesh=setup.mesh,
    encode=step.eval_encode(setup.towers, setup.objective),
    config=config,
  )
  return Pretrained(config, placed, context)


def _own(path: pathlib.Path) -> tuple[ConfigDict, dict[str, Any]]:
  """Returns (config, parameters) of a run or of a converted model."""
  folder = pathlib.Path(checkpoint.step_folder(str(path), "load"))
  places = (folder, *folder.parents[:2])
  found = next((p for p in places if (p / "config.json").exists()), None)
  if found is None:
    raise FileNotFoundError(
      f"load: no config.json beside {folder}, which would say what model it is of"
    )
  config = ConfigDict(json.loads((found / "config.json").read_text()))
  named = config.data.tokenizer
  beside = found / pathlib.Path(named).name
  if named and not pathlib.Path(named).exists() and beside.exists():
    config.data.tokenizer = str(beside)  # the folder has moved
  return config, checkpoint.read_params(str(path), "load", averaged=True)


def _unit(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
  """Returns what every batch must be a multiple of."""
  moe = config.model.moe
  return meshes.batch_shards(mesh) * (moe.group if moe.every or moe.layers else 1)


def _pixels(value: Any) -> Any:
  """Returns a picture as decode_image reads it: bytes, or uint8[h, w, c]."""
  if isinstance(value, str | pathlib.Path):
    return pathlib.Path(value).read_bytes()
  return images.array(value) if isinstance(value, Image.Image) else value


def _rng() -> np.random.Generator:
  return np.random.default_rng(0)
