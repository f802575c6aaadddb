"""What the LIMoE claims measure of a router, on made-up figures."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.claims.shared import sparse

BOTH = ("image", "text")


def test_an_expert_is_a_modalitys_own_by_share_of_tokens_not_by_count():
  # Of [image, text], per token of each: text's; image's; shared alike; dead.
  load = np.array([[[0.01, 0.60, 0.39, 1e-5], [0.60, 0.01, 0.39, 0.0]]])
  assert sparse.own_experts(load, BOTH) == {"image": 1.0, "text": 1.0}


def test_used_experts_count_where_tokens_go_in_the_worst_layer():
  even, one = np.full(4, 0.2), np.array([0.5, 0.0, 0.0, 0.0])
  used = sparse.used_experts(np.array([[even, even], [even, one]]), BOTH)
  assert used["image"] == pytest.approx(4.0) and used["text"] == pytest.approx(1.0)


def test_of_three_modalities_an_expert_of_two_is_nobodys():
  three = ("audio", "image", "text")
  load = np.array([[[0.5, 0.2, 0.0], [0.0, 0.2, 0.0], [0.02, 0.0, 0.9]]])
  assert sparse.own_experts(load, three) == {"audio": 1.0, "image": 0.0, "text": 1.0}


def row(load, served):
  head = "metrics/moe/layer01"
  made = {f"{head}/load/{m}": np.array(load[i]) for i, m in enumerate(BOTH)}
  for m in BOTH:
    made |= {f"{head}/served/{m}": served, f"{head}/token_entropy/{m}": 1.0}
    made |= {f"{head}/effective_experts/{m}": 2.0}
  return made | {"losses/objective": 1.0 + served}


def test_figures_are_of_the_end_and_own_experts_are_counted_against_the_start():
  steps = [row([[0.5, 0.5], [0.5, 0.5]], 0.2)] * 5
  steps += [row([[1.0, 0.0], [0.0, 0.8]], 0.6)] * sparse.TAIL
  figures = sparse.routing(steps, BOTH)
  assert figures["served_text"] == pytest.approx(0.6)
  assert figures["own_image"] == figures["own_text"] == 1 and figures["own_more"] == 2
  run = sparse.Run(1.0, steps, {"eval/retrieval/i2t_r10": 0.2}, None)
  assert run.loss == pytest.approx(1.6)
  assert run.retrieval(("image", "text"), "r10") == pytest.approx(0.1)  # t2i: none
  arrays = sparse.arrays(run, BOTH)
  assert "load_held_out" not in arrays and arrays["load_start"][0][1] == [0.5, 0.5]
  assert arrays["served_image"][0] == 0.2 and arrays["served_image"][-1] == 0.6


def test_the_matrix_orders_experts_by_whose_they_are():
  load = [[[0.0, 0.1, 0.9], [0.8, 0.1, 0.0]]]
  runs = [{"arm": "full", "seed": 1, "arrays": {"load_held_out": load}}]
  _, axes = plt.subplots(1, 2)
  sparse.matrix(axes[0], {"runs": runs}, "full", BOTH)
  np.testing.assert_allclose(axes[0].images[0].get_array()[0], [0.9, 0.1, 0.0])
  sparse.matrix(axes[1], {"runs": runs}, "classic", BOTH)  # each seed diverged
  assert not axes[1].images
  plt.close("all")
