import pathlib
import re

import pytest

from sharding import rules
from tools import explain_sharding

CONFIG = """
from configs import base

def get_config(arg=""):
  c = base.get_config(arg)
  c.model.embed_dim = 8
  c.model.shared_trunk = arg == "moe"
  c.model.trunk.update(dict(width=16, depth=2, heads=2, mlp=32))
  c.model.modalities.image.update(dict(size=(16, 16, 3), patch=(8, 8), pool="map"))
  c.model.modalities.text.update(dict(vocab=64, length=4))
  if arg == "moe":
    c.model.moe.update(dict(every=2, experts=4, group=2))
    c.model.moe.min_experts = dict(text=2.0, image=2.0)
  return c
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture(scope="module", params=["", ":moe"])
def table(request, config):
  c = explain_sharding.load(config + request.param)
  mesh = explain_sharding.abstract_mesh("data=4,fsdp=2,expert=4,tensor=2", c.mesh)
  params = explain_sharding.abstract_params(c)
  return request.param, explain_sharding.placement.explain(params, mesh)


def test_every_matrix_of_a_real_model_has_a_rule_of_its_own(table):
  arg, text = table
  rows = [re.split("  +", line) for line in text.splitlines()[1:-1]]
  assert rows
  general = {rule for rule, _ in rules.DEFAULT[-2:]}
  for path, _, _, rule, spec, *_ in rows:
    if path.endswith(("kernel", "embedding")):
      assert rule not in general, path
      assert spec != "replicated" or "router" in path, path
  experts = [row for row in rows if "/experts/" in row[0]]
  assert bool(experts) == (arg == ":moe")
  for row in experts:
    assert "expert" in row[4].split(","), row


def test_the_command_prints_the_table(config, capsys):
  explain_sharding.main(["--config", config, "--mesh", "fsdp=2,tensor=2"])
  out = capsys.readouterr().out
  assert "on 4 chips (data=1 fsdp=2 expert=1 tensor=2)" in out
  assert re.search(r"^objective/\S+/log_scale +\(\) ", out, re.M)
  assert "towers/trunk_text/block_*/mlp/up/kernel (2)" in out
  # The default mesh takes what there is: one chip.
  explain_sharding.main(["--config", config, "--all"])
  out = capsys.readouterr().out
  assert "on 1 chips (data=1 fsdp=1 expert=1 tensor=1)" in out
  assert "towers/trunk_text/block_01/mlp/up/kernel " in out


@pytest.mark.parametrize(
  ("flags", "error", "message"),
  [
    (["--mesh", "fsdp"], ValueError, "--mesh has 'fsdp'; expected axis=number"),
    (["--mesh", "fdsp=2"], ValueError, "config.mesh.fdsp: did you mean fsdp"),
    (["--config", "no/such.py"], FileNotFoundError, "no/such.py: no such file"),
  ],
)
def test_wrong_flags(flags, error, message, config):
  with pytest.raises(error, match=re.escape(message)):
    explain_sharding.main(["--config", config, *flags])


def test_what_an_objective_learns_is_in_the_table(capsys):
  root = pathlib.Path(__file__).parents[2]
  recipe = str(root / "configs/methods/catlip.py")
  explain_sharding.main(["--config", recipe, "--mesh", "data=2,fsdp=2"])
  out = capsys.readouterr().out
  assert re.search(r"^objective/\S*classes/\S+ ", out, re.M), out


def test_it_runs_from_a_folder_of_its_own():
  # The recipes of this house load, too.
  root = pathlib.Path(__file__).parents[2]
  assert explain_sharding.load(str(root / "configs" / "base.py")).name == "base"
