import jax.numpy as jnp
import pytest

from model.encoders import config as configs
from model.encoders import towers
from tests.model.encoders.models import small


def test_modalities_in_alphabetical_order_with_their_trunks():
  config = small(shared=False)
  config.modalities.text.trunk = dict(width=8)
  audio, image, text = configs.modalities(config)
  assert [m.name for m in (audio, image, text)] == ["audio", "image", "text"]
  assert (image.trunk.width, text.trunk.width, text.trunk.heads) == (16, 8, 2)
  assert (audio.tokens, image.tokens, text.tokens) == (8, 4, 3)


def test_example_holds_every_modality():
  example = configs.example(small(), 2)
  shapes = {m: a.shape for m, a in example.items()}
  assert shapes == {"audio": (2, 8, 4, 1), "image": (2, 8, 8, 3), "text": (2, 3)}
  assert example["text"].dtype == jnp.int32


def test_a_model_is_hashable_and_comparable():
  assert towers.build(small()) == towers.build(small())
  assert hash(towers.build(small())) == hash(towers.build(small()))
  assert towers.build(small(every=0)).moe is None


def set_key(path, value):
  def change(c):
    *heads, last = path.split(".")
    for head in heads:
      c = c[head]
    with c.unlocked() if hasattr(c, "unlocked") else c:
      c[last] = value

  return change


@pytest.mark.parametrize(
  ("path", "value", "match"),
  [
    ("trunk", dict(width=16, deptj=2), r"config\.model\.trunk\.deptj.*depth"),
    ("modalities.text.trunk", dict(width=8), r"text\.trunk overrides \['width'\]"),
    ("modalities.text.poool", "mean", r"unknown key .*text\.poool.*pool"),
    ("modalities.text.pool", "maen", r"text\.pool = 'maen': did you mean mean"),
    ("modalities.text.stem", "token", "did you mean tokens"),
    ("modalities.text.vocab", 0, r"text\.vocab = 0"),
    ("modalities.image.size", (9, 8, 3), r"not tiled by .*\(9 % 4 = 1\)"),
    ("modalities.image.patch", (), r"patch = \(\), expected"),
    ("modalities.text.gradients", (2, 4), r"text\.gradients is of stem 'patches'"),
    ("modalities.text.colors", (2, 4), r"text\.colors is of stem 'patches'"),
    ("modalities.text.drop_patches", 0.5, r"text\.drop_patches is of stem 'patches'"),
    ("modalities.image.ngrams", 4, r"image\.ngrams is of stem 'tokens'"),
    ("modalities.image.project", False, r"width 16, but config\.model\.embed_dim = 8"),
    ("modalities.text.name", "x", "the key of the entry is its name"),
    ("modalities.image.project_bias", True, r"project_bias = True without"),
    ("modalities.text.eos", 9, r"text\.eos = 9, expected an id below .*vocab = 9"),
    ("trunk.activation", "relu", r"activation = 'relu', expected one of .*quick_gelu"),
    ("trunk.epsilon", 0.0, r"epsilon = 0\.0, expected above 0"),
    ("remat", "ful", "did you mean full"),
    ("dtype", "bf16", r"config\.model\.dtype = 'bf16': did you mean bfloat16"),
    ("trunk.heads", 3, r"16 % 3 = 1"),
    ("moe.layers", (1, 5), r"block 5, expected 0 to 1"),
    ("sacn", True, r"unknown key config\.model\.sacn: did you mean scan"),
  ],
)
def test_errors_name_the_key(path, value, match):
  config = small()
  if path.endswith("project_bias"):
    config.modalities.image.project = False
    config.embed_dim = config.trunk.width
  set_key(path, value)(config)
  with pytest.raises(ValueError, match=match):
    towers.build(config)


def test_cls_needs_a_trunk_that_looks_both_ways():
  config = small()
  config.trunk.causal = True
  config.modalities.text.pool = "cls"
  with pytest.raises(ValueError, match="causal trunk"):
    towers.build(config)


def test_sincos_needs_a_divisible_width():
  config = small()
  config.trunk.update(dict(width=18, heads=2))
  config.modalities.image.position = "sincos"
  with pytest.raises(ValueError, match=r"divisible by 4, got 18"):
    towers.build(config)
