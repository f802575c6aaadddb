"""LIMoE (arXiv 2206.02770) where text is outnumbered as in the paper: twelve to one.

python -m benchmarks.claims limoe_unbalanced

The arms, rules and recipe of benchmarks/claims/limoe.py, of which 36 patches to some 7
words' pieces are only five to one, with larger pictures, that is, more patches, and
longer training. The fewer tokens a modality has, the less a balanced total asks of
them: a share of 1 / 13 on one expert of 32 is hardly out of balance.
"""

import dataclasses

from ml_collections import ConfigDict

from benchmarks.claims import limoe
from benchmarks.claims.shared.verdict import Rule, Statement


def settings(arm: str, seed: int) -> ConfigDict:
  """Returns the recipe of an arm; arms differ as those of limoe.py do.

  Raises:
    ValueError: no such arm.
  """
  c = limoe.settings(arm, seed)
  # 81 patches to 7 pieces of words; the paper has 196 to 16.
  c.model.modalities.image.size = (36, 36, 3)
  c.total_steps, c.log_every = 400, 4
  return c


# What was tried on seed 11 before the rules below were fixed.
CHOICE = {
  "seed": 11,
  "aim": "the setting of [LIMoE on emoji](limoe.md), where classic balancing did not "
  "collapse on each seed, with the paper's ratio of tokens and longer training: "
  "weights, thresholds, experts, learning rates and batch are as there. No search for "
  "retrieval",
  "pilots": [
    "64 patches, 200 steps, `classic` alone: on its way to collapse. Text at exp H 6.2 "
    "experts, .35 of it served; R@10 .100",
    "the same, 400 steps: `classic` text 4.2, .34 served, R@10 .121; `both` text 12, "
    ".28 served, R@10 .140; `full` text 10, .95 served, R@10 .170; `dense` R@10 .171",
    "81 patches, the paper's ratio, 400 steps: `classic` text 3.8, .44 served, R@10 "
    ".125; `full` text 10, .92 served, R@10 .165. Taken; `dense`, `local`, `global` "
    "and `both` were not tried in it",
    "the rules are those of limoe.py, unchanged, and two more that these pilots "
    "suggested: `cure with priority` and `price of collapse`",
    "written after the runs: the seed of the pilots misled. `classic` is two kinds "
    "of runs: on seeds 2 and 3 it loses half of text's tokens (.40 and .45 served; "
    "exp H 15 and 10), on seeds 1, 4 and 5 it balances (.85 to .89; 24 to 27). It "
    "never falls to 4.5 experts, as in two of three pilots; `local` does, on "
    "average. With entropy losses and priority no seed fails: of `full`, .82 to .99 "
    "of text is served",
  ],
}

STATEMENTS = (
  *limoe.STATEMENTS,
  Statement(
    name="cure with priority",
    text="With batch priority too, text stays on more experts than by classic "
    "balancing, and more of its tokens are served",
    rules=(
      Rule(metric="effective_experts_text", arm="full", minus="classic", at_least=1.0),
      Rule(metric="served_text", arm="full", minus="classic", at_least=0.1),
    ),
  ),
  Statement(
    name="price of collapse",
    text="With classic balancing alone the experts find less than the dense twin",
    rules=(Rule(metric="recall10", arm="dense", minus="classic", at_least=0.0),),
  ),
)

CLAIM = dataclasses.replace(
  limoe.CLAIM,
  title="LIMoE on emoji, twelve image tokens to one of text",
  about=(
    "Claims of [LIMoE on emoji](limoe.md) where text is as rare as in the paper. One "
    "trunk of two blocks reads drawings (81 patches) and their names (7 tokens on "
    "average); the second block has 32 experts, k = 1, and slots for the mean load. "
    "400 steps of 64 pairs, the router at 10 times the others' learning rate. The "
    "recipe's wide paths past the trunk are off. All arms do the same active "
    "arithmetic, but for the router's matrix."
  ),
  legend=limoe.CLAIM.legend.replace("last 40 steps", "last 80 steps"),
  seeds=(1, 2, 3, 4, 5),
  settings=settings,
  statements=STATEMENTS,
  choice=CHOICE,
)
