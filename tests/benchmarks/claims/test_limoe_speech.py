"""LIMoE with speech: its arms, stamps made up here, and one tiny run of the loop."""

import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile

from benchmarks.claims import limoe, limoe_speech
from benchmarks.claims.shared import sparse
from input_pipeline.datasets import tuxpaint
from tests.input_pipeline import layouts
from training import metrics

MODALITIES = limoe_speech.MODALITIES


def moe(arm):
  return limoe_speech.settings(arm, 3)["run"].model.moe


def clip(seconds, rate=16_000):
  file = io.BytesIO()
  tone = np.sin(np.arange(round(seconds * rate)) / 20.0)
  soundfile.write(file, tone, rate, format="WAV")
  return file.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
  """A folder like the unpacked package's, with 60 stamps that are spoken."""
  files = {}
  for i in range(60):
    stem = f"things/{'abcdefghij'[i % 10]}{'klmnopqr'[i // 10]}"
    spoken = clip(0.1 * (1 + i % 2) if i else 2.7)
    files |= {f"{stem}.png": layouts.picture(i), f"{stem}_desc_fr.wav": spoken}
    files[f"{stem}.txt"] = f"A {stem}.\nfr.utf8=Le {stem[-2:]}.\nde.utf8=Das."
  layouts.write(tmp_path / "usr/share/tuxpaint/stamps", files)
  monkeypatch.setenv("CONCORD_PACKAGES", str(tmp_path))
  limoe_speech.stamps.cache_clear()
  yield tmp_path
  limoe_speech.stamps.cache_clear()


def spec(**changes):
  return json.dumps(limoe_speech.settings("full", 0)["stamps"] | changes)


def test_arms_cost_the_same_arithmetic_but_the_one_without_speech():
  flops = {
    arm: metrics.model_flops(limoe_speech.settings(arm, 0)["run"])
    for arm in limoe_speech.ARMS
  }
  assert flops["full"] == flops["classic"]
  # What is over is the router's matrix: width x experts.
  assert 1.0 <= flops["full"] / flops["dense"] < 1.05
  assert flops["two"] < 0.6 * flops["full"]


def test_arms_have_the_losses_and_the_order_that_they_are_named_for():
  assert moe("dense").every == 0 and moe("classic").every == 2
  assert not moe("classic").priority and moe("full").priority and moe("two").priority
  for arm, on, names in (
    ("classic", 0, MODALITIES),
    ("full", 1, MODALITIES),
    ("two", 1, ("image", "text")),
  ):
    losses = moe(arm).losses
    assert losses.importance == losses.load == losses.z == 1.0
    assert losses.local_entropy.to_dict() == {"text": on}
    assert losses.global_entropy.to_dict() == dict.fromkeys(names, on)
  two = limoe_speech.settings("two", 0)["run"]
  assert list(two.model.modalities) == ["image", "text"]
  assert two.evaluators[0][2]["pairs"] == (("image", "text"),)
  with pytest.raises(ValueError, match="no arm 'tow'"):
    limoe_speech.settings("tow", 0)


def test_the_setting_is_that_of_the_claim_with_two_modalities():
  own, other = limoe_speech.settings("full", 0)["run"], limoe.settings("full", 0)
  assert own.model.trunk == other.model.trunk
  for key in ("batch_size", "total_steps", "log_every", "ema", "optimizer"):
    assert own[key] == other[key], key
  for key in ("experts", "k", "group", "weight", "noise", "priority"):
    assert own.model.moe[key] == other.model.moe[key], key
  assert sum(own.model.moe.min_experts.values()) == 32
  rules = {str(r) for s in limoe_speech.STATEMENTS for r in s.rules}
  for m, least in own.model.moe.min_experts.items():
    assert f"effective_experts_{m}: full >= {0.95 * least:g}" in rules


def test_stamps_are_decoded_once_and_only_french_is_kept(packages):
  made, test = (limoe_speech.stamps(split, spec()) for split in ("train", "test"))
  n = len(made["id"])
  assert made["image"].shape == (n, 48, 48, 3) and made["image"].dtype == np.uint8
  assert made["audio"].shape == (n, 256, 64) and made["audio_mask"].shape == (n, 256)
  # A tenth of a second, two of them, and what is kept of a clip that is longer.
  frames = np.concatenate([m["audio_mask"].sum(axis=1) for m in (made, test)])
  assert sorted(set(frames)) == [10, 20, 256]
  assert all(c["fr"][0].startswith("Le ") and len(c) == 1 for c in made["captions"])
  assert n + len(test["id"]) == 60 and not set(test["id"]) & set(made["id"])
  other = limoe_speech.stamps("test", spec(seed=1))
  assert set(other["id"]) != set(test["id"])


def test_without_the_package_the_message_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv("CONCORD_PACKAGES", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"apt-get download tuxp.*CONCORD_PACK"):
    limoe_speech.stamps("train", spec(seed=7))


def test_a_stamp_that_cannot_be_read_is_not_passed_over(packages):
  stem = packages / tuxpaint.RECIPE.folder / "things/ak_desc_fr.wav"
  stem.write_bytes(b"no sound")
  with pytest.raises(
    ValueError, match=r"stamp \d+ of .*: not audio; the claim reads all"
  ):
    for split in ("train", "test"):
      limoe_speech.stamps(split, spec())


def test_length_alone_finds_what_is_ordered_alike_and_little_else():
  rng = np.random.default_rng(0)
  long = rng.permutation(100)
  columns = {
    "audio_mask": np.arange(100) < long[:, None],
    "captions": [{"fr": ("x" * (n + 1),)} for n in long],
    "id": np.arange(100),
  }
  assert limoe_speech.by_length(columns) == 1.0
  columns["captions"] = [{"fr": ("x" * (n + 1),)} for n in rng.permutation(100)]
  assert 0.0 < limoe_speech.by_length(columns) < 0.3


@pytest.mark.slow  # that of limoe.py goes through the same functions
def test_a_tiny_run_goes_through_the_loop(packages, tmp_path):
  settings = limoe_speech.settings("full", 0)
  settings["stamps"] |= dict(side=8, frames=32)
  c = settings["run"]
  c.model.embed_dim = 8
  # The sparse block alone: what it would follow adds to the time and tells nothing.
  c.model.trunk.update(dict(width=8, mlp=16, depth=1))
  c.model.moe.every = 1
  c.model.modalities.image.update(dict(size=(8, 8, 3), patch=(4, 4)))
  c.model.modalities.audio.update(dict(size=(32, 64, 1), patch=(8, 64)))
  c.model.modalities.text.update(dict(vocab=280, length=8))
  c.model.moe.update(dict(experts=4, group=4, capacity=1.0))
  c.model.moe.min_experts.update(dict(text=1.5, image=2.0, audio=2.0))
  c.batch_size, c.total_steps, c.optimizer.warmup = 32, 4, 1
  measured = limoe_speech.measure(settings, str(tmp_path / "run"))
  figures, arrays = measured.figures, measured.arrays
  assert figures["finite"] == 1.0 and 0 < figures["loss"] < 10
  for name in limoe_speech.PAIRS:
    assert figures[f"over_{name}"] == figures[f"recall_{name}"] - figures["chance"]
  assert 0 < figures["chance"] <= 1 and 0 < figures["length"] <= 1
  for m in MODALITIES:
    assert 0 < figures[f"served_{m}"] <= 1
    assert 1 <= figures[f"effective_experts_{m}"] <= 4
  assert np.shape(arrays["load_held_out"]) == np.shape(arrays["load"]) == (1, 3, 4)
  # With slots for four times the mean load, no held-out token is left out.
  np.testing.assert_allclose(np.sum(arrays["load_held_out"], axis=-1), 1, atol=1e-3)


def test_the_plot_shows_arms_with_and_without_experts_and_speech(tmp_path):
  rng = np.random.default_rng(0)
  runs = []
  for arm in limoe_speech.ARMS:
    for seed in (1, 2):
      known = MODALITIES[1:] if arm == "two" else MODALITIES
      names = ("it",) if arm == "two" else limoe_speech.PAIRS
      arrays = {"step": [2, 4, 6]}
      if arm != "dense":
        for m in known:
          arrays |= {f"effective_experts_{m}": [3, 2, 1], f"served_{m}": [1, 1, 1]}
        arrays["load_held_out"] = rng.uniform(size=(1, len(known), 8)).tolist()
      figures = {"chance": 0.1, "length": 0.2} | {
        f"recall_{n}": rng.uniform() for n in names
      }
      runs.append({"arm": arm, "seed": seed, "figures": figures, "arrays": arrays})
  arms = limoe_speech.ARMS
  fig = limoe_speech.draw({"title": "x", "arms": arms, "seeds": [1, 2], "runs": runs})
  assert fig.axes[1].lines[-1].get_ydata()[0] == pytest.approx(0.2)
  _, labels = fig.axes[3].get_legend_handles_labels()
  assert labels == [arm for arm in arms if arm != "dense"]
  # Curves of the sparse arms that hear, and the threshold.
  assert len(fig.axes[4].lines) == 4 and len(fig.axes[5].lines) == 3
  assert [ax.lines[-1].get_ydata()[0] for ax in fig.axes[4:6]] == [8, 12]
  assert fig.axes[6].images[0].get_array().shape == (3, 8)
  fig.savefig(tmp_path / "x.png")
  plt.close(fig)


def test_a_run_of_two_modalities_has_figures_of_their_pair_alone(monkeypatch, tmp_path):
  columns = {"audio_mask": np.ones((2, 3), bool), "id": [0, 1]}
  monkeypatch.setattr(limoe_speech, "stamps", lambda split, spec: columns)
  found = {f"eval/retrieval/{d}_r10": 0.5 for d in ("i2t", "t2i")}
  found |= {f"eval/retrieval/{d}_chance_r10": 0.1 for d in ("i2t", "t2i")}
  head = "metrics/moe/layer01"
  row = {"step": 2, "grad_norm": 1.0, "losses/objective": 4.0}
  for m in ("image", "text"):
    row |= {f"{head}/load/{m}": np.full(4, 0.25), f"{head}/effective_experts/{m}": 4.0}
    row |= {f"{head}/token_entropy/{m}": 1.0}
  row |= {f"{head}/served/image": 0.9, f"{head}/served/text": 0.6}
  run = sparse.Run(1.0, [row], found, None)
  monkeypatch.setattr(sparse, "train", lambda config, workdir: run)
  settings = limoe_speech.settings("two", 0)
  figures = limoe_speech.measure(settings, str(tmp_path)).figures
  assert figures["recall"] == figures["recall_it"] == 0.5
  assert figures["over_it"] == pytest.approx(0.4)
  assert figures["text_behind"] == pytest.approx(0.3)
  assert not {"recall_at", "length", "served_audio"} & set(figures)
