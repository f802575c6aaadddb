"""Another evaluator again, on damaged images: what is left of its metrics.

The corruptions are transforms (input_pipeline/transforms/corrupt.py), applied after
resizing and before normalize; each example is damaged alike in every evaluation.
"""

import dataclasses
from typing import Any, ClassVar

from ml_collections import ConfigDict
import numpy as np

from evaluators.context import Context
from input_pipeline.transforms.corrupt import STRENGTHS
from model import catalogue
from model.types import Params


def damaged(config: ConfigDict, kind: str, severity: int) -> ConfigDict:
  """Returns a copy of the recipe whose evaluation sees damaged images.

  Raises:
    ValueError: config.data.eval_transforms without normalize, before which they are to
      be damaged.
  """
  steps = tuple(config.data.eval_transforms)
  at = [i for i, (name, _) in enumerate(steps) if name == "normalize"]
  if not at:
    raise ValueError(
      "robustness damages images before 'normalize', which "
      f"config.data.eval_transforms {[name for name, _ in steps]} do not have"
    )
  new = config.copy_and_resolve_references()
  damage = ("corrupt", dict(kind=kind, severity=severity))
  new.data.eval_transforms = (*steps[: at[0]], damage, *steps[at[0] :])
  return new


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Metrics of an evaluator on clean images and under each corruption.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the results.
    evaluator: a file of evaluators/.
    options: its options.
    metrics: of its results, those to report.
    kinds: of corruptions; () is all.
    severities: of 1 to 5.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "robustness"
  evaluator: str = "retrieval"
  options: Any = ()
  metrics: tuple[str, ...] = ("i2t_r1", "t2i_r1")
  kinds: tuple[str, ...] = ()
  severities: tuple[int, ...] = (1, 3, 5)

  def __post_init__(self):
    if unknown := set(self.kinds) - set(STRENGTHS):
      known = list(STRENGTHS)
      hints = [catalogue.near_misses(kind, known) for kind in sorted(unknown)]
      raise ValueError(f"robustness.kinds {sorted(unknown)}: {'; '.join(hints)}")
    if not self.severities or not set(self.severities) <= set(range(1, 6)):
      raise ValueError(
        f"robustness.severities = {self.severities} must be some of 1 to 5"
      )
    damaged(self.context.config, next(iter(STRENGTHS)), 1)
    self._built(self.context)

  def run(self, params: Params) -> dict[str, float]:
    """Returns clean/<metric>, <kind>_<severity>/<metric>, mean/ and retained/<metric>.

    `mean` is over kinds and severities; `retained` its share of `clean`.

    Raises:
      ValueError: a metric that the evaluator does not give.
    """
    out = self._measured(self.context, params, "clean")
    found: list[dict[str, float]] = []
    for kind in self.kinds or STRENGTHS:
      for severity in self.severities:
        changed = damaged(self.context.config, kind, severity)
        name = f"{kind}_{severity}"
        found.append(self._measured(self.context.changed(config=changed), params, name))
    for metric in self.metrics:
      values = [
        value for one in found for key, value in one.items() if _is(key, metric)
      ]
      mean, clean = float(np.mean(values)), out[f"clean/{metric}"]
      out[f"mean/{metric}"] = mean
      out[f"retained/{metric}"] = mean / clean if clean else 0.0
    return out | {key: value for one in found for key, value in one.items()}

  def _built(self, context: Context) -> Any:
    cls = catalogue.find("evaluators", self.evaluator, "Evaluator")
    # No artifacts: those of the evaluator on clean images keep their place.
    options = {"context": context.changed(workdir=""), **dict(self.options)}
    return catalogue.build(cls, options, f"{self.name}.options")

  def _measured(self, context: Context, params: Params, at: str) -> dict[str, float]:
    found = self._built(context).run(params)
    if missing := set(self.metrics) - found.keys():
      raise ValueError(
        f"robustness.metrics {sorted(missing)} are none of {self.evaluator}'s: "
        f"{', '.join(sorted(found))}"
      )
    return {f"{at}/{metric}": found[metric] for metric in self.metrics}


def _is(key: str, metric: str) -> bool:
  return key.partition("/")[2] == metric
