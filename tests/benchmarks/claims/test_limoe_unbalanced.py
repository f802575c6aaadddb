"""The claim of unbalanced tokens: what it changes in LIMoE's, and nothing else."""

from benchmarks.claims import limoe, limoe_unbalanced
from benchmarks.claims.shared import claim
from training import metrics


def test_it_differs_from_the_first_claim_in_patches_and_steps():
  for arm in limoe.ARMS:
    own = claim.flat(limoe_unbalanced.settings(arm, 3))
    first = claim.flat(limoe.settings(arm, 3))
    assert own.keys() == first.keys()
    changed = {k for k in own if own[k] != first[k]}
    assert changed == {"model.modalities.image.size", "total_steps", "log_every"}


def test_image_tokens_are_as_many_as_in_the_paper_for_one_of_text():
  c = limoe_unbalanced.settings("full", 0).model.modalities
  patches = (c.image.size[0] // c.image.patch[0]) ** 2
  assert 196 / 16 - 1 < patches / 7 < 196 / 16 + 1  # names have 7 pieces on average


def test_arms_cost_the_same_arithmetic():
  arms = limoe_unbalanced.CLAIM.arms
  flops = {a: metrics.model_flops(limoe_unbalanced.settings(a, 0)) for a in arms}
  sparse = {v for a, v in flops.items() if a != "dense"}
  assert len(sparse) == 1
  assert 1.0 <= sparse.pop() / flops["dense"] < 1.05


def test_no_rule_of_the_first_claim_is_changed():
  assert limoe_unbalanced.STATEMENTS[: len(limoe.STATEMENTS)] == limoe.STATEMENTS
