"""The survey's question: where negatives come from, with everything else the same."""

import functools

from benchmarks.claims import moco_v2
from benchmarks.claims.shared import plot, simclr
from benchmarks.claims.shared.claim import Claim
from benchmarks.claims.shared.verdict import Rule, Statement

SOURCES = ("batch", "bank", "queue")
ARMS = {"untrained": "the network as it starts"}
ARMS |= {arm: moco_v2.ARMS[arm] for arm in SOURCES}


def _more(arm: str, minus: str, bound: float, metric: str = "knn") -> Rule:
  return Rule(metric=metric, arm=arm, minus=minus, at_least=bound)


STATEMENTS = (
  Statement(
    name="learning",
    text="Whatever the source of negatives, neighbours gain ten points over those of "
    "the untrained network",
    rules=tuple(_more(arm, "untrained", 0.1) for arm in SOURCES),
  ),
  Statement(
    name="queue",
    text="At a batch of 16 a queue beats the batch itself",
    rules=(_more("queue", "batch", 0.0),),
  ),
  Statement(
    name="bank",
    text="So does a memory bank",
    rules=(_more("bank", "batch", 0.0),),
  ),
  Statement(
    name="averaged network",
    text="A queue, whose keys are all of one slowly moving network, beats a bank, "
    "whose rows are as old as an epoch",
    rules=(_more("queue", "bank", 0.0),),
  ),
)

CLAIM = Claim(
  title="Sources of negatives at a batch of 16",
  source="arXiv 2011.00362",
  about=f"{simclr.ABOUT} 30 epochs; the temperature is 0.2.",
  legend="5 nearest neighbours and a linear probe, accuracy on the test digits.",
  arms=ARMS,
  seeds=moco_v2.CLAIM.seeds,
  settings=moco_v2.settings,
  varies=(
    "ema",
    "lr",
    "objective.form",
    "objective.in_batch",
    "objective.losses",
    "objective.name",
    "objective.negatives",
    "objective.pairs",
    "objective.queue",
    "objective.rows",
    "objective.temperature",
  ),
  measure=moco_v2.measure,
  statements=STATEMENTS,
  columns=(("knn", "5-NN"), ("linear", "linear probe")),
  draw=functools.partial(
    plot.draw, panels=(("knn", "5 nearest neighbours"), ("linear", "linear probe"))
  ),
  choice=moco_v2.CLAIM.choice,
)
