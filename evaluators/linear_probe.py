"""How well a linear classifier, trained on the frozen embedding, tells classes apart.

Multinomial logistic regression with an l2 penalty, as in arXiv 2103.00020 (section
3.2): by L-BFGS on all examples, or by SGD. The penalty is chosen on examples that the
fit left out, and the classifier is then fitted to all of them.
"""

from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np

from evaluators import bootstrap, features, fit
from evaluators.context import Context
from evaluators.features import Labelled
from model.types import Params

SOLVERS = ("lbfgs", "sgd")


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Accuracy of logistic regression for each label of the source and each solver.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the results.
    split: of config.data.source, to classify.
    train: the split whose labels are learned.
    validation: the split that chooses; "": every fifth concept of `train`.
    labels: label names; each is a classification of its own.
    modality: to classify by.
    solvers: of SOLVERS.
    l2: penalties to choose from; scikit-learn's C is 1 / (l2 n).
    lr: learning rates of "sgd" to choose from.
    epochs: of "sgd".
    minibatch: rows, of "sgd".
    steps: of "lbfgs", at most.
    batch_size: global, of the towers; 0 is config.batch_size.
    source: changes to the source's options, for all splits.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "linear_probe"
  split: str = "test"
  train: str = "train"
  validation: str = ""
  labels: tuple[str, ...] = ("group",)
  modality: str = "image"
  solvers: tuple[str, ...] = ("lbfgs",)
  l2: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
  lr: tuple[float, ...] = (1.0, 10.0)
  epochs: int = 30
  minibatch: int = 1024
  steps: int = 1000
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  bootstrap: int = 0

  def __post_init__(self):
    if unknown := set(self.solvers) - set(SOLVERS):
      raise ValueError(f"linear_probe.solvers: {sorted(unknown)}, expected {SOLVERS}")
    if not self.l2 or min(self.l2) < 0 or not self.lr:
      raise ValueError(
        f"linear_probe.l2 = {self.l2} must be some numbers, none below 0, and "
        f"linear_probe.lr = {self.lr} some numbers"
      )

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_lbfgs_top1 and so on.

    Raises:
      ValueError: a label that the source does not have, or no examples of it.
    """
    splits = [s for s in (self.train, self.split, self.validation) if s]
    how = (self.modality, self.batch_size, self.source)
    embedded = [features.embed(self.context, params, s, *how) for s in splits]
    metrics: dict[str, float] = {}
    queries: dict[str, np.ndarray] = {}
    for label in self.labels:
      data = [features.labelled(e, self.modality, label, self.name) for e in embedded]
      for solver in self.solvers:
        predicted, chosen = self._predict(solver, *data)
        at = f"{label}_{solver}_"
        found = features.accuracy(predicted, data[1].y, self.bootstrap)
        metrics |= {at + k: v for k, v in (found | chosen).items()}
        queries[f"{at}top1"] = predicted == data[1].y
      metrics[f"{label}_majority"] = features.majority(data[0].y, data[1].y)
      metrics[f"{label}_n"] = float(len(data[1].y))
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics

  def _predict(
    self, solver: str, train: Labelled, test: Labelled, other: Labelled | None = None
  ) -> tuple[np.ndarray, dict[str, float]]:
    """Returns i[n], the classes of the test examples, and the settings chosen."""
    classes = int(max(train.y.max(), test.y.max())) + 1
    held = features.held_out(train.concept)
    keep, choosing = None, other
    if other is None and held.any():
      keep, choosing = ~held, train.rows(held)
    settings = [dict(l2=l2) for l2 in self.l2]
    if solver == "sgd":
      settings = [dict(l2=a, lr=b) for a, b in itertools.product(self.l2, self.lr)]
    best, most = settings[0], -1
    if choosing is not None and len(settings) > 1:
      for setting in settings:
        fitted = self._fit(solver, train, classes, setting, keep)
        right = int((self._classify(fitted, choosing) == choosing.y).sum())
        if right > most:  # of equally good ones the first
          best, most = setting, right
    return self._classify(self._fit(solver, train, classes, best), test), best

  def _fit(
    self,
    solver: str,
    data: Labelled,
    classes: int,
    setting: Mapping[str, float],
    keep: np.ndarray | None = None,
  ) -> Any:
    mesh, l2 = self.context.mesh, setting["l2"]
    if solver == "lbfgs":
      return fit.lbfgs(data, classes, l2, mesh, steps=self.steps, keep=keep)
    return fit.by_steps(
      fit.linear,
      fit.zeros(data.x.shape[1], classes),
      data if keep is None else data.rows(keep),
      mesh,
      rule="sgd",
      epochs=self.epochs,
      batch_size=self.minibatch,
      lr=setting["lr"],
      l2=l2,
    )

  def _classify(self, fitted: Any, data: Labelled) -> np.ndarray:
    return fit.predict(fit.linear, fitted, data, self.context.mesh)
