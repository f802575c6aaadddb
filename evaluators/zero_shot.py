"""Zero-shot classification: classes are named in words, never trained on.

A class is the renormalised mean of its prompts' embeddings (arXiv 2103.00020, section
3.1.4); an example belongs to the class it is most similar to.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any, ClassVar

from etils import epath
import numpy as np

from evaluators import bootstrap, calibration
from evaluators import context as context_lib
from evaluators.context import Context, Embedded
from evaluators.gallery import TIE
from input_pipeline import pipeline
from input_pipeline.drop import Drop
from model.types import Params


def class_embeddings(prompts: np.ndarray) -> np.ndarray:
  """Returns f32[c, d] at unit norm from prompts f32[c, p, d] at unit norm."""
  mean = prompts.mean(axis=1)
  return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def ranks(similarity: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns i64[n]: how many wrong classes are at least as similar as the right one.

  Args:
    similarity: f32[n, c].
    label: i32[n] in 0..c-1.
  """
  own = np.take_along_axis(similarity, label[:, None].astype(np.int64), axis=1)
  # The right class is within TIE of itself: take it out.
  return (similarity >= own - TIE).sum(axis=1) - 1


def per_example(rank: np.ndarray) -> dict[str, np.ndarray]:
  """Returns top1 and top5, bool[n]."""
  return {f"top{k}": rank < k for k in (1, 5)}


def summarise(
  rank: np.ndarray, label: np.ndarray, classes: int, draws: int = 0
) -> dict[str, float]:
  """Returns top1, top5, mean_per_class (of the classes seen), chance and majority.

  With draws, resamples, top1 and top5 have intervals.
  """
  support = np.bincount(label, minlength=classes)
  hits = np.bincount(label, weights=rank < 1, minlength=classes)
  seen = support > 0
  return {
    **bootstrap.means(per_example(rank), draws),
    "mean_per_class": float((hits[seen] / support[seen]).mean()),
    "chance": 1.0 / classes,
    "majority": float(support.max() / support.sum()),
    "classes": float(classes),
    "n": float(len(label)),
  }


def read_templates(given: str | Sequence[str]) -> tuple[str, ...]:
  """Returns prompts with {} for the class: given, or the lines of a text file.

  CLIP_benchmark's files say {c}, which is taken as well.

  Raises:
    FileNotFoundError: no such file.
    ValueError: none, or one without a place for the class.
  """
  if isinstance(given, str):
    path = epath.Path(given)
    if not path.exists():
      raise FileNotFoundError(f"zero_shot.templates: no file {given!r}")
    given = [line for line in path.read_text().splitlines() if line.strip()]
  texts = tuple(t.strip().replace("{c}", "{}") for t in given)
  bad = [t for t in texts if "{}" not in t]
  if bad or not texts:
    raise ValueError(
      f"zero_shot.templates need {{}} for the class, got {bad or 'none'}"
    )
  return texts


def calibrated(
  similarity: np.ndarray,
  target: np.ndarray,
  known: np.ndarray,
  known_target: np.ndarray,
) -> dict[str, float]:
  """Returns temperature, nll, ece and prior_top1 of test examples.

  Args:
    similarity: f32[n, c], of test examples.
    target: i[n] in 0..c-1.
    known: f32[m, c], of the examples on which the temperature is fitted; without their
      labels, they also say which classes the model prefers.
    known_target: i[m].
  """
  t = calibration.temperature(known, known_target)
  log_p = calibration.log_softmax(similarity / t)
  prior = calibration.log_prior(calibration.log_softmax(known / t))
  right = log_p.argmax(axis=1) == target
  fair = ranks((similarity - t * prior).astype(np.float32), target)
  return {
    "temperature": t,
    "nll": float(calibration.nll(log_p, target).mean()),
    "ece": calibration.ece(np.exp(log_p.max(axis=1)), right),
    "prior_top1": float((fair < 1).mean()),
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
    templates: prompts, with {} for the class, or a text file of them, one a line.
    words: ((class, text), ...): better words for some classes.
    modality: to classify.
    text: the modality of the prompts.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options.
    per_class: also gives the accuracy of each class, as <label>_class/<name>.
    calibrate: a split, another one, that calibrates the probabilities: gives
      <label>_temperature, _nll, _ece and, with the model's prior divided out,
      _prior_top1. "": none.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "zero_shot"
  split: str = "test"
  labels: tuple[str, ...] = ("group",)
  min_items: int = 1
  count_splits: tuple[str, ...] = ()
  templates: str | tuple[str, ...] = ("{}",)
  words: tuple[tuple[str, str], ...] = ()
  modality: str = "image"
  text: str = "text"
  batch_size: int = 0
  source: Mapping[str, Any] | None = None

  per_class: bool = False
  calibrate: str = ""
  bootstrap: int = 0

  def __post_init__(self):
    read_templates(self.templates)
    known = self._classes()
    for label in self.labels:
      if label not in known:
        raise ValueError(
          f"zero_shot.labels: the source has no label {label!r}, only {sorted(known)}"
        )
      if not known[label]:
        raise ValueError(
          f"zero_shot.labels: the source names no classes of {label!r}, and there is "
          "nothing to prompt with: see its option for the names of classes"
        )
    if self.calibrate == self.split:
      raise ValueError(
        f"zero_shot.calibrate = {self.calibrate!r} is the split that is measured: name "
        "another one, as what is fitted to these examples flatters them"
      )

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_top1 and so on; saves the accuracy of each class."""
    embedded = self._embed(params, self.split)
    known = self._embed(params, self.calibrate) if self.calibrate else None
    metrics: dict[str, float] = {}
    queries: dict[str, np.ndarray] = {}
    for label in self.labels:
      found, ranked = self._classify(params, embedded, known, label)
      metrics |= {f"{label}_{key}": value for key, value in found.items()}
      for key, value in per_example(ranked).items():
        queries[f"{label}_{key}"] = value
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics

  def _embed(self, params: Params, split: str) -> Embedded:
    return context_lib.embed(
      self.context,
      params,
      split=split,
      modalities=(self.modality,),
      batch_size=self.batch_size,
      options=self.source,
    )

  def _classes(self) -> Mapping[str, tuple[str, ...]]:
    config = self.context.config
    return pipeline.source(config, split=self.split, options=self.source).classes

  def _classify(
    self, params: Params, embedded: Embedded, known: Embedded | None, label: str
  ) -> tuple[dict[str, float], np.ndarray]:
    """Returns the metrics of a label, and the rank of each example."""
    names = self._classes()[label]
    truth = embedded.labels[label]
    kept = np.flatnonzero(self._support(truth, label, len(names)) >= self.min_items)
    # The last position is for label -1: unlabelled.
    position = np.full(len(names) + 1, -1)
    position[kept] = np.arange(len(kept))
    rows = position[truth] >= 0
    if len(kept) < 2 or not rows.any():
      raise ValueError(
        f"zero_shot needs two classes of {label!r} with min_items = {self.min_items} "
        f"examples, and examples of them in split {self.split!r}: got {len(kept)} "
        f"classes, {int(rows.sum())} examples"
      )
    chosen = [names[i] for i in kept]
    classes = class_embeddings(self._prompts(params, chosen))
    similarity = embedded.z[self.modality][rows] @ classes.T
    target = position[truth][rows]
    rank = ranks(similarity, target)
    self._save(label, chosen, rank, target, np.argmax(similarity, axis=1))
    metrics = summarise(rank, target, len(kept), self.bootstrap)
    if self.per_class:
      for i, name in enumerate(chosen):
        if (target == i).any():
          metrics[f"class/{name}"] = float((rank[target == i] < 1).mean())
    if known is not None:
      fit = position[known.labels[label]]
      if not (fit >= 0).any():
        raise ValueError(
          f"zero_shot.calibrate: split {self.calibrate!r} has no example of the "
          f"{len(kept)} classes of {label!r}"
        )
      other = known.z[self.modality][fit >= 0] @ classes.T
      metrics |= calibrated(similarity, target, other, fit[fit >= 0])
    return metrics, rank

  def _support(self, truth: np.ndarray, label: str, classes: int) -> np.ndarray:
    """Returns i64[classes]: examples of each class, over count_splits."""
    if self.count_splits:
      found = [self._labels(split, f"label_{label}") for split in self.count_splits]
      truth = np.asarray([*itertools.chain(*found)], np.int64)
    return np.bincount(truth[truth >= 0], minlength=classes)

  def _labels(self, split: str, key: str) -> Iterator[int]:
    """Yields the labels of a split's examples, without those that drop out."""
    source = pipeline.source(self.context.config, split=split, options=self.source)
    for i in range(len(source)):
      try:
        yield source[i][key]
      except Drop:  # as in what is embedded
        continue

  def _prompts(self, params: Params, classes: Sequence[str]) -> np.ndarray:
    """Returns f32[c, p, d]: the embedding of each class in each template."""
    better = dict(self.words)
    words = [better.get(name, readable(name)) for name in classes]
    templates = read_templates(self.templates)
    # Not format(): a name may hold braces.
    texts = [t.replace("{}", word) for word in words for t in templates]
    rows = pipeline.tokenize(self.context.config, texts, modality=self.text)
    z = context_lib.encode_rows(self.context, params, rows, self.batch_size)[self.text]
    return z.reshape(len(classes), len(templates), -1)

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
