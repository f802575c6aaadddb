import jax.numpy as jnp
import numpy as np
import pytest

from evaluators import context as context_lib


def test_padding_is_gone_and_rows_are_unit(context, split, params):
  out = context_lib.embed(context, params, split="test")
  expected = split.vector / np.linalg.norm(split.vector, axis=1, keepdims=True)
  for m in ("image", "text"):
    np.testing.assert_allclose(out.z[m], expected, atol=1e-6)
    assert out.z[m].dtype == np.float32
  np.testing.assert_array_equal(out.id, split.id)
  np.testing.assert_array_equal(out.labels["group"], split.group)
  np.testing.assert_array_equal(out.index, np.arange(37))


def test_only_the_wanted_modalities(context, params):
  assert set(context_lib.embed(context, params, split="test").z) == {"image", "text"}
  out = context_lib.embed(context, params, split="test", modalities=("image",))
  assert set(out.z) == {"image"}
  with pytest.raises(ValueError, match=r"\['sound'\].*config.model.modalities"):
    context_lib.embed(context, params, split="test", modalities=("sound",))


def test_encode_is_compiled_once_for_all_evaluations(context, params):
  for _ in range(3):
    context_lib.embed(context, params, split="test")
  assert context.encode.traced == 1
  context_lib.embed(context, {"w": params["w"] * 2.0}, split="test")
  assert context.encode.traced == 1


def test_aux_is_averaged_by_valid_rows(context, params):
  out = context_lib.embed(context, params, split="test")
  # Batches of 16, 16 and 5 valid rows whose aux is that number.
  mean = (16 * 16 + 16 * 16 + 5 * 5) / 37
  np.testing.assert_allclose(
    out.aux["metrics/moe/layer01/load/image"], [mean, -mean], rtol=1e-6
  )


def test_rows_are_padded_and_cut(context, params):
  rows = {"text": np.eye(8, dtype=np.float32)[:5] * 3.0}
  z = context_lib.encode_rows(context, params, rows)
  assert set(z) == {"text"}
  np.testing.assert_allclose(z["text"], np.eye(8)[:5], atol=1e-6)


def test_an_empty_split_is_an_error(context, split, params, monkeypatch):
  monkeypatch.setattr(context_lib.pipeline, "eval_batches", lambda *a, **k: [])
  with pytest.raises(ValueError, match=r"split 'nothing'.*no examples"):
    context_lib.embed(context, params, split="nothing")


def test_normalise_keeps_zero_finite():
  out = context_lib.normalise(jnp.zeros((1, 4), jnp.bfloat16))
  assert out.dtype == jnp.float32
  assert not np.asarray(out).any()


def test_artifacts(context, tmp_path):
  context_lib.save(context, "a/b", x=np.arange(3), kind="k")
  with np.load(tmp_path / "artifacts" / "a_b.npz") as f:
    np.testing.assert_array_equal(f["x"], np.arange(3))
    assert str(f["kind"]) == "k"


def test_a_split_larger_than_the_memory_is_an_error(context, params, monkeypatch):
  monkeypatch.setattr(context_lib, "free_memory", lambda: 4000)
  with pytest.raises(ValueError, match=r"'test' \(image 48 x 8 \+ text 48 x 8, f32\)"):
    context_lib.embed(context, params, split="test")
  # 20 x 2 x 8 floats, twice, are 2,560 bytes.
  assert len(context_lib.embed(context, params, split="test", limit=20).id) == 20


def test_a_limit_takes_the_first_rows(context, params):
  every = context_lib.embed(context, params, split="test")
  some = context_lib.embed(context, params, split="test", limit=17)
  np.testing.assert_array_equal(some.index, np.arange(17))
  np.testing.assert_array_equal(some.z["image"], every.z["image"][:17])


def test_the_machine_says_how_much_memory_is_free():
  free = context_lib.free_memory()
  assert free is None or free > 2**20
