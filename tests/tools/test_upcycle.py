"""The command writes what config.init_from takes whole, and says what it did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import upcycle
from tools import explain_sharding
from tools import upcycle as tool
from training import checkpoint
from training.state import TrainState

CONFIG = """
from configs import args, base

def get_config(arg=""):
  a = args.parse(arg, experts=0, k=1, vocab=9, scan=False, depth=2)
  c = base.get_config()
  c.model.embed_dim = 4
  c.model.shared_trunk = True
  c.model.scan = a.scan
  c.model.trunk.update(dict(width=4, depth=a.depth, heads=1, mlp=6))
  c.model.modalities.image.update(dict(size=(4, 4, 3), patch=(4, 4)))
  c.model.modalities.text.update(dict(vocab=a.vocab, length=2))
  if a.experts:
    c.model.moe.update(dict(every=2, experts=a.experts, k=a.k, group=2))
    c.model.moe.min_experts.update(dict(text=1.5, image=1.5))
  return c
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
  """Returns (workdir, parameters) of a dense run."""
  config = explain_sharding.load(recipe)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype),
    explain_sharding.abstract_params(config),
  )
  params["objective"] = {"scale": jnp.ones(())}
  step = jnp.asarray(3, jnp.int32)
  state = TrainState(step, params, {"count": step}, {}, {}, jnp.zeros(2, jnp.uint32))
  workdir = str(tmp_path_factory.mktemp("dense"))
  one = checkpoint.Checkpointer(workdir, config.checkpoint)
  one.save(3, state, {})
  one.close()
  checkpoint.save_config(workdir, config)
  return workdir, params


def taken(folder, recipe, params):
  """Returns what `config.init_from` makes of a folder; the whole model, or it fails."""
  wanted = explain_sharding.abstract_params(explain_sharding.load(recipe))
  wanted["objective"] = jax.eval_shape(lambda: params["objective"])
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  got, odd = checkpoint.init_from(folder, wanted, jax.tree.map(lambda _: here, wanted))
  assert odd == []
  return got


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_upcycles_then_resizes_and_init_from_takes_all(run, recipe, tmp_path, capsys):
  workdir, params = run
  four, eight = str(tmp_path / "four"), str(tmp_path / "eight")
  tool.main(["--from", workdir, "--config", f"{recipe}:experts=4", "--out", four])
  said = capsys.readouterr().out
  got = taken(four, f"{recipe}:experts=4", params)
  model = explain_sharding.load(f"{recipe}:experts=4").model
  same(got["towers"], upcycle.upcycle(params["towers"], model, jax.random.key(0)))
  same(got["objective"], params["objective"])
  # w m + m + m w + w = 24 + 6 + 24 + 4 of each of 4 experts; a router of 4 x 4.
  assert "upcycled: 4 experts, k = 1" in said
  assert "experts, copies: 4 arrays, 232 parameters" in said
  assert "routers: 1 arrays, 16 parameters" in said
  assert "capacity = 1.05 drops tokens at the start that 4 would not" in said
  assert f"--config.init_from={four}" in said

  scanned = f"{recipe}:experts=4,scan"
  flags = ["--from", four, "--config", scanned, "--experts", "8", "--out", eight]
  tool.main(flags)
  assert "resized: 4 experts, k = 1 -> 8 experts, k = 1" in capsys.readouterr().out
  got = taken(eight, f"{recipe}:experts=8,scan", params)
  up = params["towers"]["trunk"]["block_01"]["mlp"]["down"]["kernel"]
  down = got["towers"]["trunk"]["blocks"]["block_01"]["moe"]["experts"]["down"]
  same(down["kernel"], jnp.stack([8 * up] * 8)[None])
  with pytest.raises(FileExistsError, match="holds a checkpoint already"):
    tool.main(flags)


def test_says_what_is_left_out_and_what_is_new(run, recipe, tmp_path, capsys):
  config = f"{recipe}:experts=4,vocab=12"
  tool.main(["--from", run[0], "--config", config, "--out", str(tmp_path / "out")])
  said = capsys.readouterr().out
  assert "stem_text/embed/embedding: (9, 4) in the file, (12, 4) in the model" in said
  assert "left out: optimizer, moving average, data state, and" in said


@pytest.mark.parametrize(
  ("source", "arg", "flags", "error", "message"),
  [
    ("nowhere", "experts=4", [], FileNotFoundError, "--from: no checkpoint in .*nowhe"),
    ("", "", [], ValueError, "describe a dense model"),
    ("", "experts=4,depth=3", [], ValueError, "has 2 blocks, expected .*depth = 3"),
    ("", "experts=4", ["--keep", "0,1"], ValueError, "has no experts to keep"),
  ],
)
def test_wrong_flags(run, recipe, tmp_path, source, arg, flags, error, message):
  where = str(tmp_path / source) if source else run[0]
  config, out = f"{recipe}:{arg}", str(tmp_path / "out")
  with pytest.raises(error, match=message):
    tool.main(["--from", where, "--config", config, "--out", out, *flags])


def test_a_sparse_checkpoint_without_its_config_is_not_guessed_at(
  run, recipe, tmp_path
):
  model = explain_sharding.load(f"{recipe}:experts=4").model
  towers = upcycle.upcycle(run[1]["towers"], model, jax.random.key(0))
  source = str(tmp_path / "bare" / "a" / "b")
  checkpoint.write_params(source, {"towers": towers})
  config, out = f"{recipe}:experts=8", str(tmp_path / "out")
  with pytest.raises(FileNotFoundError, match=r"no config\.json .*moe\.k"):
    tool.main(["--from", source, "--config", config, "--out", out])
