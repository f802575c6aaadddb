"""Each evaluator as the loop uses it: context and options in, floats and files out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluators import health, retrieval, routing, zero_shot
from model import catalogue
from model.types import Encoded
from sharding import mesh as meshes


def load(tmp_path, name):
  with np.load(tmp_path / "artifacts" / f"{name}.npz") as f:
    return dict(f)


@pytest.mark.parametrize("module", [health, retrieval, routing, zero_shot])
def test_built_by_the_catalogue_and_all_floats(module, context, params):
  file = module.__name__.partition(".")[2]
  options = {"context": context, "name": "mine"}
  evaluator = catalogue.load("evaluators", file, "Evaluator", options)
  metrics = evaluator.run(params)
  assert metrics
  assert all(type(v) is float and np.isfinite(v) for v in metrics.values())
  assert evaluator.run(params) == metrics


def test_retrieval_with_and_without(context, params, tmp_path):
  metrics = retrieval.Evaluator(context, without=(("flag", 1),)).run(params)
  assert metrics["n"] == 37
  assert metrics["without_flag/n"] == 25
  for name in ("i2t_r1", "t2i_r1", "without_flag/i2t_r1", "t2i_mrr"):
    assert metrics[name] == 1.0
  saved = load(tmp_path, "retrieval")
  assert str(saved["kind"]) == "retrieval"
  assert saved["i2t_top"].shape == (37, 5)
  assert saved["i2t_correct"][:, 0].all()
  # Rows 3 and 5 are one concept: both find both.
  assert set(saved["t2i_top"][5, :2]) == {3, 5}
  assert saved["t2i_correct"][5, :2].all()


def test_retrieval_sees_what_is_wrong(context, split, params):
  rolled = split.rows
  split.rows = lambda: rolled() | {"text": np.roll(split.vector, 7, axis=0)}
  metrics = retrieval.Evaluator(context).run(params)
  assert metrics["i2t_r1"] < 0.2
  assert metrics["t2i_median_rank"] > 3


def test_retrieval_names_an_unknown_label(context, params):
  with pytest.raises(ValueError, match=r"without='colour'.*'flag', 'group'"):
    retrieval.Evaluator(context, without=(("colour", 1),)).run(params)


def test_zero_shot(context, params, split, tmp_path):
  evaluator = zero_shot.Evaluator(context, labels=("group",))
  metrics = evaluator.run(params)
  assert metrics["group_n"] == 36  # row 0 has no label
  assert metrics["group_classes"] == 3
  assert metrics["group_chance"] == pytest.approx(1 / 3)
  assert metrics["group_top1"] > 0.5  # centroids of eight random dimensions
  assert metrics["group_top5"] == 1.0
  saved = load(tmp_path, "zero_shot_group")
  assert saved["support"].sum() == saved["confusion"].sum() == 36
  hits = np.diag(saved["confusion"]).sum() / 36
  assert hits == pytest.approx(metrics["group_top1"])
  assert list(saved["classes"]) == ["animals", "food-drink", "flags"]


def test_zero_shot_leaves_out_small_classes(context, params, split):
  split.group[:] = np.arange(37) % 2
  split.group[1] = 2
  metrics = zero_shot.Evaluator(context, min_items=5).run(params)
  assert (metrics["group_classes"], metrics["group_n"]) == (2, 36)
  # Counted over two splits, the small class has enough.
  twice = zero_shot.Evaluator(context, min_items=2, count_splits=("train", "test"))
  assert twice.run(params)["group_classes"] == 3
  with pytest.raises(ValueError, match="min_items = 99"):
    zero_shot.Evaluator(context, min_items=99).run(params)


def test_zero_shot_averages_templates_and_takes_better_words(context, params):
  plain = zero_shot.Evaluator(context, templates=("{}", "a {}")).run(params)
  # "a animals" embeds to zero: the mean's direction is unchanged.
  assert plain == zero_shot.Evaluator(context).run(params)
  words = (("animals", "flags"), ("flags", "animals"))
  swapped = zero_shot.Evaluator(context, words=words).run(params)
  assert swapped["group_top1"] < plain["group_top1"]


def test_zero_shot_names_what_is_wrong(context):
  with pytest.raises(ValueError, match=r"no label 'colour', only \['flag', 'group'\]"):
    zero_shot.Evaluator(context, labels=("colour",))
  with pytest.raises(ValueError, match="templates"):
    zero_shot.Evaluator(context, templates=("an emoji",))


def test_health(context, params):
  metrics = health.Evaluator(context, limit=20).run(params)
  assert metrics["alignment/image_text"] == pytest.approx(0.0, abs=1e-6)
  assert metrics["modality_gap/image_text"] == pytest.approx(0.0, abs=1e-6)
  assert metrics["uniformity/image"] < -1
  assert 4 < metrics["effective_rank/text"] <= 8


def test_routing(context, params, tmp_path):
  metrics = routing.Evaluator(context).run(params)
  assert metrics["layer01/served/text"] == 0.5
  assert metrics["served/text"] == 0.75
  saved = load(tmp_path, "routing")
  assert list(saved["layers"]) == ["layer01", "layer03"]
  assert list(saved["modalities"]) == ["image", "text"]
  assert saved["load"].shape == (2, 2, 2)
  np.testing.assert_allclose(saved["load"][1], np.ones((2, 2)))


def test_routing_of_a_dense_model_is_an_error():
  scalars, arrays = routing.collect({"losses/x": np.float32(1)})
  assert scalars == {}
  assert "load" not in arrays


def test_routing_keeps_what_each_expert_likes(context, split, params, tmp_path):
  def encode(params, batch):
    encoded, aux = context.encode(params, batch)
    x, real = batch["image"], batch["valid"][:, None, None]
    expert = (x[:, 2:4, None] > 0).astype(jnp.int32)  # of two patches
    aux |= {
      "routes/layer01/image/index": jnp.where(real, expert, -1),
      "routes/layer01/image/served": jnp.broadcast_to(real, expert.shape),
      "routes/layer01/image/gate": jax.nn.sigmoid(x[:, :2, None]),
    }
    return encoded, aux

  config = context.config.copy_and_resolve_references()
  image = dict(stem="patches", size=(2, 1, 3), patch=(1, 1))
  config.model = dict(moe=dict(experts=2), modalities=dict(image=image, text={}))
  new = dataclasses.replace(context, encode=encode, config=config)
  plain = routing.Evaluator(context).run(params)
  assert routing.Evaluator(new, favourites=40).run(params) == plain  # not averaged
  saved = load(tmp_path, "routing")
  gate, expert = split.vector[:, :2], split.vector[:, 2:4] > 0
  for e in range(2):
    best = np.where(expert == e, gate, -np.inf)
    order = np.argsort(-best.max(1), kind="stable")
    rows = [i for i in order if np.isfinite(best[i]).any()]
    index = saved["patches/layer01/image/index"][e]
    assert index[index >= 0].tolist() == rows and 10 < len(rows) < 37
    position = saved["patches/layer01/image/position"][e]
    assert position[index >= 0].tolist() == best[rows].argmax(1).tolist()
  routing.Evaluator(new, favourites=0).run(params)
  assert not [k for k in load(tmp_path, "routing") if k.startswith("patches")]


def test_images_of_several_captions_stand_once(context, split, params):
  """Karpathy's protocol: captions ask for images, images for any of their captions."""
  rng = np.random.default_rng(0)
  image = np.repeat(rng.normal(size=(9, 8)).astype(np.float32), 4, axis=0)
  text = image + rng.normal(size=image.shape).astype(np.float32)
  split.id = np.repeat(np.arange(9), 4).astype(np.int32)
  split.group = split.id
  fields = split.rows()
  split.rows = lambda: {**fields, "image": image, "text": text}
  evaluator = retrieval.Evaluator(context, unique=("image",), ks=(1, 3), bootstrap=20)
  got = evaluator.run(params)
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image[::4], text)]
  s = unit[0] @ unit[1].T  # [9 images, 36 captions]
  t2i = [(s[:, j] > s[split.id[j], j]).sum() for j in range(36)]
  i2t = [(s[i] > s[i, split.id == i].max()).sum() for i in range(9)]
  for name, rank in (("t2i", t2i), ("i2t", i2t)):
    for k in (1, 3):
      assert got[f"{name}_r{k}"] == pytest.approx(np.mean(np.asarray(rank) < k)), name
  assert 0 < got["t2i_r1"] < 1
  assert got["t2i_chance_r1"] == pytest.approx(1 / 9)
  assert got["t2i_r1_low"] < got["t2i_r1"] < got["t2i_r1_high"]


def test_zero_shot_calibrates_on_another_split(context, params, split):
  options = dict(per_class=True, calibrate="train", bootstrap=20)
  got = zero_shot.Evaluator(context, **options).run(params)
  plain = zero_shot.Evaluator(context).run(params)
  assert {k: got[k] for k in plain} == plain
  assert got["group_temperature"] > 0 and 0 <= got["group_ece"] <= 1
  assert got["group_top1_low"] <= got["group_top1"] <= got["group_top1_high"]
  each = [got[f"group_class/{c}"] for c in ("animals", "food-drink", "flags")]
  assert np.mean(each) == pytest.approx(got["group_mean_per_class"])
  with pytest.raises(ValueError, match="is the split that is measured"):
    zero_shot.Evaluator(context, calibrate="test")


def test_templates_of_a_file(context, params, tmp_path):
  path = tmp_path / "templates.txt"
  path.write_text("{c}\na {c}\n\n")
  got = zero_shot.Evaluator(context, templates=str(path)).run(params)
  assert got == zero_shot.Evaluator(context, templates=("{}", "a {}")).run(params)
  with pytest.raises(FileNotFoundError, match="no file"):
    zero_shot.Evaluator(context, templates="none.txt")
  path.write_text("\n")
  with pytest.raises(ValueError, match="got none"):
    zero_shot.Evaluator(context, templates=str(path))


def test_an_empty_list_of_classes_is_an_error(context, split, monkeypatch):
  from tests.evaluators import conftest

  monkeypatch.setattr(conftest.Source, "classes", {"group": ()})
  with pytest.raises(ValueError, match="names no classes of 'group'"):
    zero_shot.Evaluator(context)


EVERY = {
  "attentive_probe": dict(heads=2, epochs=20, lr=(1e-3,)),
  "few_shot": dict(shots=(3,)),
  "health": {},
  "linear_probe": dict(l2=(1e-1,)),
  "probe": {},
  "retrieval": dict(unique=("image",)),
  "routing": {},
  "zero_shot": dict(calibrate="train"),
}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_one_device_measures_what_eight_do(name, context, params):
  """Both pad: 37 rows of batches of 16 on one device, or two rows a device."""

  def encode(params, batch):
    encoded, aux = context.encode(params, batch)
    tokens = {m: jnp.stack([x.pooled, -x.pooled], 1) for m, x in encoded.items()}
    return {m: Encoded(encoded[m].pooled, tokens[m]) for m in encoded}, aux

  metrics = []
  for mesh in (context.mesh, meshes.make(dict(data=1), jax.devices()[:1])):
    new = dataclasses.replace(context, mesh=mesh, encode=encode)
    options = {"context": new, **EVERY[name]}
    metrics.append(catalogue.load("evaluators", name, "Evaluator", options).run(params))
  eight, one = metrics
  assert eight.keys() == one.keys()
  for key in one:
    assert type(one[key]) is float and np.isfinite(one[key]), key
    assert eight[key] == pytest.approx(one[key], abs=1e-5), key
