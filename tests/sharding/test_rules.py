from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax
import pytest

from sharding import mesh as meshes
from sharding import rules

EIGHT = {
  "fsdp": {"fsdp": 8},
  "tensor": {"fsdp": 2, "tensor": 4},
  "expert": {"expert": 4, "fsdp": 2},
  "all": {"fsdp": 2, "expert": 2, "tensor": 2},
}
ROWS = ("tensor", "fsdp")


@pytest.fixture(scope="module")
def mesh():
  return meshes.make(EIGHT["all"])


def spec(path, shape, mesh, extra=()):
  return rules.assign(path, shape, mesh, rules.table(extra)).spec


@pytest.mark.parametrize(
  ("path", "shape", "expected"),
  [
    ("towers/trunk/b0/attention/query/kernel", (8, 4, 4), P(None, ROWS)),
    ("towers/trunk/block00/attention/value/bias", (2, 4), P("tensor")),
    ("towers/trunk/b0/attention/out/kernel", (4, 4, 8), P(ROWS)),
    ("towers/trunk/b0/attention/out/bias", (8,), P()),
    ("towers/trunk_text/b0/mlp/up/kernel", (8, 32), P("fsdp", "tensor")),
    ("towers/trunk_text/b0/mlp/up/bias", (32,), P("tensor")),
    ("towers/trunk_text/b0/mlp/down/kernel", (32, 8), P(ROWS)),
    ("towers/trunk_text/b0/mlp/down/bias", (8,), P()),
    ("towers/trunk/b1/moe/router/kernel", (8, 4), P()),
    ("t/b1/moe/experts/up/kernel", (4, 8, 32), P("expert", "fsdp", "tensor")),
    ("t/b1/moe/experts/up/bias", (4, 32), P("expert", "tensor")),
    ("t/b1/moe/experts/down/kernel", (4, 32, 8), P("expert", ROWS)),
    ("t/b1/moe/experts/down/bias", (4, 8), P("expert")),
    ("0/v_row/t/b1/moe/experts/up/kernel", (6, 4, 8), P(None, "expert")),
    ("0/v_col/t/b1/moe/experts/up/kernel", (4, 32), P("expert")),
    ("0/v_row/t/b1/moe/experts/up/kernel", (1,), P()),
    ("towers/stem_text/embed/embedding", (64, 8), P(ROWS)),
    ("towers/stem_image/embed/kernel", (192, 8), P("tensor", "fsdp")),
    ("towers/stem_image/position", (64, 8), P(None, "fsdp")),
    ("towers/project_image/kernel", (8, 16), P("fsdp", "tensor")),
    ("towers/pool_image/attention/key/kernel", (8, 4, 4), P(None, ROWS)),
    ("towers/trunk/b0/norm1/scale", (8,), P()),
    ("objective/infonce/temperature", (), P()),
    ("objective/head/kernel", (8, 8), P("fsdp")),
  ],
)
def test_default_table(path, shape, expected, mesh):
  assert spec(path, shape, mesh) == expected


@pytest.mark.parametrize(
  ("path", "shape"),
  [
    ("attention/query/kernel", (14, 1024, 16, 64)),
    ("attention/out/kernel", (14, 16, 64, 1024)),
    ("mlp/up/kernel", (14, 1024, 4096)),
    ("mlp/down/kernel", (14, 4096, 1024)),
    ("moe/experts/up/kernel", (5, 32, 1024, 4096)),
    ("moe/experts/down/kernel", (5, 32, 4096, 1024)),
    ("stem_text/embed/embedding", (32_000, 1024)),
  ],
)
def test_fsdp_splits_no_last_dimension_of_what_is_multiplied(path, shape):
  # The TPU compiler would sum the gradient whole on every chip: twice the bytes.
  axes = ("data", "fsdp", "expert", "tensor")
  got = tuple(spec(path, shape, jax.sharding.AbstractMesh((1, 8, 32, 1), axes)))
  assert "fsdp" in got[: len(shape) - 1], got


def test_leading_dimensions_of_a_scan_stay_whole(mesh):
  path = "towers/trunk/blocks/mlp/up/kernel"
  assert spec(path, (6, 8, 32), mesh) == P(None, "fsdp", "tensor")


@pytest.mark.parametrize(("name", "axes"), EIGHT.items())
def test_axes_of_size_one_are_left_out(name, axes):
  mesh = meshes.make(axes)
  got = spec("moe/experts/up/kernel", (8, 16, 32), mesh)
  wanted = [a if axes.get(a, 1) > 1 else None for a in ("expert", "fsdp", "tensor")]
  while wanted and wanted[-1] is None:
    wanted.pop()
  assert got == P(*wanted), name


def test_a_path_component_is_matched_whole(mesh):
  # `myattention` is not attention: it falls to the rule for any other matrix.
  assert spec("towers/myattention/query/kernel", (8, 2, 4), mesh) == P(None, "fsdp")


def test_config_rules_come_first(mesh):
  path = "towers/trunk/b0/mlp/up/kernel"
  extra = [["mlp/up/kernel", [None, ["fsdp", "tensor"]]]]
  assert spec(path, (8, 32), mesh, extra) == P(None, ("fsdp", "tensor"))
  assert spec(path, (8, 32), mesh, [(".*", "expert")]) == P(None, "expert")
  assert spec(path, (8, 32), mesh, [(".*kernel", None)]) == P()
  tree = {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((8, 32), jnp.float32)}}}
  by_config = rules.specs(tree, mesh, extra)
  assert by_config["mlp"]["up"]["kernel"].spec == P(None, ("fsdp", "tensor"))
  assert rules.specs(tree, mesh, rules.table(extra)) == by_config


@pytest.mark.parametrize(
  ("path", "shape", "expected", "note"),
  [
    ("mlp/up/bias", (5,), P(), "tensor replicated: 5 % 2"),
    ("mlp/up/kernel", (5, 8), P(None, "tensor"), "fsdp replicated: 5 % 2"),
    ("mlp/up/kernel", (8, 5), P("fsdp"), "tensor replicated: 5 % 2"),
    ("x/kernel", (5, 8), P(None, "fsdp"), "fsdp moved to dim 1: 5 % 2"),
    # Fewer heads than chips.
    (
      "attention/query/kernel",
      (8, 2, 4),
      P("fsdp", "tensor"),
      "fsdp moved to dim 0: 2 % 4",
    ),
    (
      "moe/experts/up/kernel",
      (3, 8, 8),
      P(None, "fsdp", "tensor"),
      "expert replicated",
    ),
    ("mlp/up/kernel", (8,), P(), "replicated: rank 1 < 2 of the rule"),
  ],
)
def test_what_does_not_divide_falls_back_and_says_so(path, shape, expected, note, mesh):
  got = rules.assign(path, shape, mesh)
  assert got.spec == expected
  assert note in "; ".join(got.notes)


def test_a_dimension_over_two_axes_keeps_those_that_divide(mesh):
  extra = [("queue", (("fsdp", "tensor"), None))]
  got = rules.assign("objective/queue", (6, 3), mesh, rules.table(extra))
  assert got.spec == P("fsdp")
  assert got.notes == ("tensor replicated: 6 % 4",)


def test_only_large_fallbacks_warn(mesh, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  small = {"mlp": {"up": {"bias": jax.ShapeDtypeStruct((5,), jnp.float32)}}}
  rules.specs(small, mesh)
  assert not said
  large = {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((1025, 1024), jnp.float32)}}}
  for _ in range(2):
    rules.specs(large, mesh)
  assert said == ["mlp/up/kernel (1025, 1024): fsdp replicated: 1025 % 2"]


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (("kernel", ("fdsp",)), r"names the mesh axis 'fdsp': did you mean fsdp\?"),
    (("never/matches", ("modell",)), r"'modell'.*Mend config\.sharding\.rules"),
    (("kernel", ("fsdp", "fsdp")), r"names a mesh axis twice"),
    (("ker[nel", ()), r"regex 'ker\[nel' of config\.sharding\.rules does not compile"),
    (("kernel",), r"expected \(regex, axes\)"),
    (("kernel", 3), r"expected \(regex, axes\)"),
  ],
)
def test_bad_rules_raise_even_when_nothing_matches(rule, message, mesh):
  tree = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  with pytest.raises(ValueError, match=message):
    rules.specs(tree, mesh, [rule])


def test_moments_are_laid_out_like_their_parameter(mesh):
  params = {
    "towers": {
      "block": {"mlp": {"up": {"kernel": jnp.zeros((8, 32)), "bias": jnp.zeros(32)}}},
      "stem_text": {"embed": {"embedding": jnp.zeros((64, 8))}},
    }
  }
  state = jax.eval_shape(optax.adamw(1e-3).init, params)
  laid_out = rules.specs({"opt_state": state, "step": jnp.int32(0)}, mesh)
  wanted = rules.specs(params, mesh)
  assert wanted["towers"]["block"]["mlp"]["up"]["kernel"].spec == P("fsdp", "tensor")
  adam = laid_out["opt_state"][0]
  assert adam.mu == wanted
  assert adam.nu == wanted
  assert adam.count.spec == P()
  assert laid_out["step"].spec == P()


def test_factored_moments_and_keys_get_a_layout(mesh):
  params = {"mlp": {"up": {"kernel": jnp.zeros((256, 512))}}}
  state = jax.eval_shape(optax.adafactor(1e-3).init, params)
  for leaf, sharding in zip(
    jax.tree.leaves(state), jax.tree.leaves(rules.specs(state, mesh)), strict=True
  ):
    sharding.shard_shape(leaf.shape)  # raises where a spec does not fit
  assert rules.specs({"rng": jax.random.key(0)}, mesh)["rng"].spec == P()
