"""Zero-shot classification: classes are named in words, never trained on.

A class is the renormalised mean of its prompts' embeddings (arXiv 2103.00020, section
3.1.4); an example belongs to the class it is most similar to.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context, Embedded
from evaluators.gallery import TIE
from input_pipeline import pipeline
from model.types import Params


def class_embeddings(prompts: np.ndarray) -> np.ndarray:
  """Returns f32[c, d] at unit norm from prompts f32[c, p, d] at unit norm."""
  mean = prompts.mean(axis=1)
  return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def ranks(z: np.ndarray, classes: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns i64[n]: how many wrong classes are at least as similar as the right one.

  Args:
    z: f32[n, d], unit norm.
    classes: f32[c, d], unit norm.
    label: i32[n] in 0..c-1.
  """
  similarity = z @ classes.T
  own = np.take_along_axis(similarity, label[:, None].astype(np.int64), axis=1)
  # The right class is within TIE of itself: take it out.
  return (similarity >= own - TIE).sum(axis=1) - 1


def summarise(rank: np.ndarray, label: np.ndarray, classes: int) -> dict[str, float]:
  """Returns top1, top5, mean_per_class (of the classes seen), chance and majority."""
  support = np.bincount(label, minlength=classes)
  hits = np.bincount(label, weights=rank < 1, minlength=classes)
  seen = support > 0
  return {
    "top1": float((rank < 1).mean()),
    "top5": float((rank < 5).mean()),
    "mean_per_class": float((hits[seen] / support[seen]).mean()),
    "chance": 1.0 / classes,
    "majority": float(support.max() / support.sum()),
    "classes": float(classes),
    "n": float(len(label)),
  }


def readable(name: str) -> str:
  """Returns a class's name as words: "sky & weather" for "sky-&-weather"."""
  return " ".join(name.replace("_", " ").replace("-", " ").split())


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Top-1, top-5 and mean per-class accuracy for each label of the source.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the artifacts.
    split: of config.data.source.
    labels: label names; each is a classification of its own.
    min_items: classes with fewer examples are left out, and their examples with them.
    count_splits: the splits in which min_items are counted; () is `split` alone.
    templates: prompts, with {} for the class.
    words: ((class, text), ...): better words for some classes.
    modality: to classify.
    text: the modality of the prompts.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options.
  """

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "zero_shot"
  split: str = "test"
  labels: tuple[str, ...] = ("group",)
  min_items: int = 1
  count_splits: tuple[str, ...] = ()
  templates: tuple[str, ...] = ("{}",)
  words: tuple[tuple[str, str], ...] = ()
  modality: str = "image"
  text: str = "text"
  batch_size: int = 0
  source: Mapping[str, Any] | None = None

  def __post_init__(self):
    if bad := [t for t in self.templates if "{}" not in t] or not self.templates:
      raise ValueError(f"zero_shot.templates need {{}} for the class, got {bad}")
    known = self._classes()
    for label in self.labels:
      if label not in known:
        raise ValueError(
          f"zero_shot.labels: the source has no label {label!r}, only {sorted(known)}"
        )

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_top1 and so on; saves the accuracy of each class."""
    embedded = context_lib.embed(
      self.context,
      params,
      split=self.split,
      modalities=(self.modality,),
      batch_size=self.batch_size,
      options=self.source,
    )
    metrics = {}
    for label in self.labels:
      for key, value in self._classify(params, embedded, label).items():
        metrics[f"{label}_{key}"] = value
    return metrics

  def _classes(self) -> Mapping[str, tuple[str, ...]]:
    config = self.context.config
    return pipeline.source(config, split=self.split, options=self.source).classes

  def _classify(
    self, params: Params, embedded: Embedded, label: str
  ) -> dict[str, float]:
    names = self._classes()[label]
    truth = embedded.labels[label]
    kept = np.flatnonzero(self._support(truth, label, len(names)) >= self.min_items)
    # The last position is for label -1: unlabelled.
    position = np.full(len(names) + 1, -1)
    position[kept] = np.arange(len(kept))
    target = position[truth]
    rows = target >= 0
    if len(kept) < 2 or not rows.any():
      raise ValueError(
        f"zero_shot needs two classes of {label!r} with min_items = {self.min_items} "
        f"examples, and examples of them in split {self.split!r}: got {len(kept)} "
        f"classes, {int(rows.sum())} examples"
      )
    chosen = [names[i] for i in kept]
    classes = class_embeddings(self._prompts(params, chosen))
    z, target = embedded.z[self.modality][rows], target[rows]
    rank = ranks(z, classes, target)
    self._save(label, chosen, rank, target, np.argmax(z @ classes.T, axis=1))
    return summarise(rank, target, len(kept))

  def _support(self, truth: np.ndarray, label: str, classes: int) -> np.ndarray:
    """Returns i64[classes]: examples of each class, over count_splits."""
    if self.count_splits:
      config, key = self.context.config, f"label_{label}"
      sources = [
        pipeline.source(config, split=s, options=self.source) for s in self.count_splits
      ]
      truth = np.asarray([s[i][key] for s in sources for i in range(len(s))])
    return np.bincount(truth[truth >= 0], minlength=classes)

  def _prompts(self, params: Params, classes: Sequence[str]) -> np.ndarray:
    """Returns f32[c, p, d]: the embedding of each class in each template."""
    better = dict(self.words)
    words = [better.get(name, readable(name)) for name in classes]
    texts = [template.format(word) for word in words for template in self.templates]
    rows = pipeline.tokenize(self.context.config, texts, modality=self.text)
    z = context_lib.encode_rows(self.context, params, rows, self.batch_size)[self.text]
    return z.reshape(len(classes), len(self.templates), -1)

  def _save(
    self,
    label: str,
    classes: Sequence[str],
    rank: np.ndarray,
    target: np.ndarray,
    predicted: np.ndarray,
  ) -> None:
    c = len(classes)
    confusion = np.zeros((c, c), np.int64)
    np.add.at(confusion, (target, predicted), 1)
    support = np.bincount(target, minlength=c)
    hits = np.bincount(target, weights=rank < 1, minlength=c)
    context_lib.save(
      self.context,
      f"{self.name}_{label}",
      kind="zero_shot",
      label=label,
      classes=np.asarray(classes),
      accuracy=hits / np.maximum(support, 1),
      support=support,
      confusion=confusion,
    )
