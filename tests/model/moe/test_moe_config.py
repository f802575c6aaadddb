import dataclasses
import math

from ml_collections import ConfigDict
import pytest

from configs import base
from model.moe.config import MoeConfig, split


def _config(**changes):
  c = base.moe()
  c.update(changes)
  return c


def test_the_base_config_builds():
  c = MoeConfig.from_config(_config(every=2), ("image", "text"))
  assert dict(c.losses) == {
    "importance": 1.0,
    "load": 1.0,
    "z": 1.0,
    "local_entropy_text": 1.0,
    "global_entropy_text": 1.0,
    "global_entropy_image": 1.0,
  }
  assert dict(c.min_experts) == {"text": 3.0, "image": 5.0}
  assert hash(c) == hash(dataclasses.replace(c))
  assert dict(c.warn) == {
    "served/image": 0.5,
    "served/text": 0.5,
    "effective_experts/image": 2.5,
    "effective_experts/text": 1.5,
  }
  given = set(base.moe()) - {"every", "losses", "min_experts", "warn"}
  for key in given:
    assert getattr(c, key) == getattr(base.moe(), key), key
  assert set(base.moe()) == {f.name for f in dataclasses.fields(MoeConfig)}


def test_a_floor_is_of_a_modality():
  with pytest.raises(ValueError, match=r"moe\.warn\.served = 0\.5.*text"):
    MoeConfig.from_config({"warn": {"served": 0.5}})
  assert MoeConfig.from_config({"warn": {"served": {"a": 1}}}).warn == (
    ("served/a", 1.0),
  )


def test_zero_disables_a_loss():
  losses = dict(z=0.0, local_entropy=dict(text=0.0), importance=2.0)
  c = MoeConfig.from_config(_config(losses=losses, min_experts={}, noise=1.0).unlock())
  names = dict(c.losses)
  assert "z" not in names and "local_entropy_text" not in names
  assert names["importance"] == 2.0
  only = MoeConfig.from_config(ConfigDict(dict(losses=losses)))
  assert only.losses == (("importance", 2.0),)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(k=9), ["config.model.moe.k = 9", "experts = 8"]),
    (dict(k=0), ["config.model.moe.k = 0"]),
    (dict(experts=0), ["config.model.moe.experts = 0"]),
    (dict(group=0), ["config.model.moe.group = 0"]),
    (dict(capacity=0.0), ["config.model.moe.capacity = 0.0", "cannot hold one token"]),
    (dict(capacity_eval=-1.0), ["config.model.moe.capacity_eval = -1.0"]),
    (dict(noise=0.0), ["losses.load", "config.model.moe.noise", "sigma"]),
    (dict(noise=-1.0), ["config.model.moe.noise = -1.0"]),
    (dict(weight=-0.1), ["config.model.moe.weight = -0.1"]),
    (dict(warn=dict(serve={})), ["config.model.moe.warn.serve", "did you mean served"]),
    (dict(dispatch="gathr"), ["config.model.moe.dispatch", "did you mean gather?"]),
    (dict(router="top_k"), ["config.model.moe.router = 'top_k'", "token_choice"]),
    (dict(router="expert_choise"), ["config.model.moe.router", "mean expert_choice"]),
    (dict(slots=0), ["config.model.moe.slots = 0"]),
    (dict(pieces=0), ["pieces = 0", "above 0"]),
    (dict(pieces=2, dispatch="dropless"), ["pieces = 2", "no slots"]),
    (dict(dropless_kernel="megablocks"), ["dropless_kernel", "did you mean megablox?"]),
    (dict(statistics="groups"), ["config.model.moe.statistics", "mean group"]),
    (dict(experts=5), ["config.model.moe.min_experts.image = 5.0", "log 5"]),
    (dict(min_experts=dict(text=0.5)), ["config.model.moe.min_experts.text = 0.5"]),
    (dict(losses=dict(importance=-1.0)), ["importance has weight -1.0"]),
    (dict(losses=dict(local_entropy=dict(audo=1.0))), ["local_entropy.audo", "known"]),
    (
      dict(losses=dict(global_entropy=dict(audio=1.0))),
      ["config.model.moe.min_experts.audio"],
    ),
  ],
)
def test_contradictions_name_their_key(changes, words):
  names = ("image", "text", "audio")
  with pytest.raises(ValueError) as error:
    MoeConfig.from_config(_config(every=2, **changes), names)
  for word in words:
    assert word in str(error.value)


BALANCED = dict(load=0.0, gshard=0.0, importance=1.0, z=1.0)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(), ["losses.load = 1.0", "router = 'expert_choice'", "the same number"]),
    (dict(router="soft"), ["losses.load = 1.0", "router = 'soft'", "none does"]),
    (dict(losses=dict(load=0.0, gshard=1.0)), ["losses.gshard = 1.0", "Set"]),
    (dict(losses=BALANCED, dispatch="dropless"), ["dispatch = 'dropless'", "'gather'"]),
    (
      dict(losses=BALANCED, dispatch="dropless", router="soft", group=1),
      ["dispatch = 'dropless'", "router = 'soft'", "mixtures"],
    ),
    (
      dict(losses=BALANCED, router="soft"),
      ["router = 'soft'", "config.model.moe.group = 8", "negatives", "Set"],
    ),
  ],
)
def test_what_a_router_cannot_honour_is_refused_with_a_reason(changes, words):
  with pytest.raises(ValueError) as error:
    MoeConfig.from_config(_config(every=2, **(dict(router="expert_choice") | changes)))
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize("router", ["expert_choice", "soft"])
def test_a_router_without_balancing_losses_builds(router):
  changes = dict(router=router, group=1, losses=BALANCED, every=2)
  c = MoeConfig.from_config(_config(**changes))
  assert c.router == router and "load" not in dict(c.losses)


def test_a_dense_model_does_not_mind_the_default_modalities():
  losses = MoeConfig.from_config(base.moe(), ("audio", "touch")).losses
  assert ("local_entropy_text", 1.0) in losses
  with pytest.raises(ValueError, match=r"unknown modality .*global_entropy\.image"):
    MoeConfig.from_config(_config(layers=(1,)), ("audio", "touch"))


def test_unknown_keys_have_near_misses():
  with pytest.raises(ValueError, match=r"config\.model\.moe\.capacit: did you mean"):
    MoeConfig.from_config(dict(capacit=1.0))
  with pytest.raises(ValueError, match=r"moe\.losses\.imprtance: did you mean impor"):
    MoeConfig.from_config(dict(losses=dict(imprtance=1.0)))
  with pytest.raises(ValueError, match=r"losses\.z = .*expected one weight"):
    MoeConfig.from_config(dict(losses=dict(z=dict(text=1.0))))
  with pytest.raises(ValueError, match=r"losses\.local_entropy = 1\.0, expected modal"):
    MoeConfig.from_config(dict(losses=dict(local_entropy=1.0)))
  with pytest.raises(ValueError, match="did you mean importance"):
    MoeConfig(losses=(("importanc", 1.0),))


def test_loss_names_split():
  assert split("z") == ("z", "")
  assert split("local_entropy_side_scan") == ("local_entropy", "side_scan")
  with pytest.raises(ValueError, match="no 'local_entropy_'"):
    split("local_entropy_")


def test_blocks():
  assert MoeConfig(every=2).blocks(6) == (1, 3, 5)
  assert MoeConfig(every=3).blocks(7) == (2, 5)
  assert MoeConfig().blocks(6) == ()
  assert MoeConfig(every=2, layers=(5, 0)).blocks(6) == (0, 5)
  with pytest.raises(ValueError, match=r"every = 7 .*depth = 6"):
    MoeConfig(every=7).blocks(6)
  with pytest.raises(ValueError, match=r"names block 6, expected 0 to 5"):
    MoeConfig(layers=(6,)).blocks(6)


def test_experts_must_split_over_the_mesh():
  MoeConfig(experts=30).check_mesh(5)
  with pytest.raises(ValueError) as error:
    MoeConfig(experts=30).check_mesh(8)
  assert "experts = 30 cannot be split over the mesh axis" in str(error.value)
  assert "(30 % 8 = 6)" in str(error.value)
  assert "one of 1, 2, 3, 5, 6, 10, 15, 30" in str(error.value)


def test_groups_must_divide_the_batch():
  c = MoeConfig(group=8)
  assert c.groups(64, 4) == 8
  with pytest.raises(ValueError) as error:
    c.groups(60)
  for word in ("60 % 8 = 4", "config.model.moe.group", "config.batch_size"):
    assert word in str(error.value)
  with pytest.raises(ValueError) as error:
    c.groups(48, 4)
  for word in ("6 routing groups", "6 % 4 = 2", "8 * 4 = 32", "48 / 4 = 12"):
    assert word in str(error.value)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (dict(warn=dict(effective_experts=dict(text=8.5))), "text = 8.5 cannot be reached"),
    (dict(warn=dict(served=dict(text=1.5))), "served is at most 1"),
    (dict(warn=dict(served=dict(txt=0.5))), r"warn\.served\.txt: did you mean text"),
    (dict(min_experts=dict(imge=3)), r"min_experts\.imge: did you mean image"),
    (dict(noise=math.nan), "noise = nan"),
    (dict(weight=math.inf), "weight = inf"),
  ],
)
def test_what_cannot_be_is_refused_in_sparse_models(options, words):
  with pytest.raises(ValueError, match=words):
    MoeConfig.from_config({"every": 2, **options}, ["image", "text"])


def test_settings_of_base_do_not_ask_for_their_modalities():
  usual = base.moe()
  usual.losses = {}
  MoeConfig.from_config({**usual, "every": 2}, ["audio", "text"])
  # Nor do those of a modality that a recipe leaves out.
  usual.min_experts.audio = 3.0
  MoeConfig.from_config({**usual, "every": 2}, ["image", "text"])
