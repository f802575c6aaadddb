"""The command evaluates as training did: same parameters, same figures, or says why."""

import json
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.sources import in_memory
from tests.small import tiny
from tools import evaluate, saved_config
from training import checkpoint, evaluation
from training import setup as setup_lib

RECIPE = """
from tests.tools import test_evaluate

def get_config(arg=""):
  return test_evaluate.config()
"""
COLOURS = ("red", "green", "blue")


def config():
  c = tiny(batch_size=8, ema=0.5)
  c.mesh.data = -1
  c.data.source = "in_memory"
  c.data.options = {"name": "evaluate_{split}"}
  c.data.eval_transforms = (("decode_image", {}), ("normalize", {}))
  c.data.threads = 0
  c.evaluators = (
    ("probe", 0, dict(labels=("colour",), k=1)),
    ("health", 0, dict(name="shape", modalities=("image",))),
  )
  c.checkpoint.best = "shape/uniformity/image"
  return c


def put(split, n, classes=COLOURS):
  rng = np.random.default_rng(n)
  label = np.arange(n) % 3
  image = rng.integers(0, 60, (n, 8, 8, 3)).astype(np.uint8)
  image[np.arange(n), :, :, label] += 180
  columns = dict(image=image, label_colour=label)
  in_memory.put(f"evaluate_{split}", classes={"colour": classes}, **columns)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir as a run leaves it, whose average is not its parameters."""
  put("train", 20)
  put("test", 13)
  in_memory.put(
    "evaluate_empty", image=[], label_colour=[], classes={"colour": COLOURS}
  )
  workdir = tmp_path_factory.mktemp("run")
  c = config()
  setup = setup_lib.build(c)
  with jax.set_mesh(setup.mesh):
    state = setup.init_state()
    state = state.replace(ema=jax.tree.map(lambda x: x * 1.5 + 0.1, state.params))
    keeper = checkpoint.Checkpointer(str(workdir), tiny().checkpoint)
    keeper.save(7, state, {"tokenizer": ""})
    keeper.close()
    scheduled = evaluation.build(setup, "")
    figures = {k: v for e in scheduled for k, v in e.run(state.eval_params, 7).items()}
  checkpoint.save_config(str(workdir), c)
  return workdir, figures


def call(*flags):
  return evaluate.run(evaluate.parse([*map(str, flags)]))


def test_a_workdir_alone_gives_what_training_measured(run, capsys):
  workdir, figures = run
  evaluate.main(["--workdir", str(workdir)])
  path = workdir / "evaluation" / "step_00000007.json"
  found = json.loads(path.read_text())
  for key, value in figures.items():
    if not key.endswith("seconds"):
      assert found["metrics"][key] == pytest.approx(value, abs=1e-6), key
  assert (found["step"], found["parameters"]) == (7, "ema")
  probe = found["evaluators"]["probe"]
  assert (probe["evaluator"], probe["version"], probe["options"]["k"]) == (
    "probe",
    1,
    1,
  )
  assert found["evaluators"]["shape"]["evaluator"] == "health"
  top1 = found["metrics"]["probe/colour_knn_top1"]
  assert found["metrics"]["probe/colour_knn_top1_low"] < top1 or top1 in (0, 1)
  shown = capsys.readouterr().out
  assert "probe: probe version 1, split test" in shown
  assert f"colour_knn_top1 {top1:.4f}" in " ".join(shown.split())
  assert str(path) in shown


def test_a_recipe_a_checkpoint_and_one_device_give_the_same(run, tmp_path, monkeypatch):
  workdir, figures = run
  recipe = tmp_path / "recipe.py"
  recipe.write_text(RECIPE)
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *a: one)
  monkeypatch.setattr(jax, "device_count", lambda *a: 1)
  flags = (
    "--config",
    recipe,
    "--checkpoint",
    workdir / "checkpoints" / "step_00000007",
  )
  options = ("--option", "mine.modalities=('image',)", "--bootstrap", 0)
  where = ("--out", tmp_path / "x.json")
  found = call(*flags, "--evaluators", "mine=health", *options, *where)
  assert dict(found["mesh"]) == dict(data=1, fsdp=1, expert=1, tensor=1)
  for key in ("uniformity/image", "effective_rank/image"):
    want = figures[f"shape/{key}"]
    assert found["metrics"][f"mine/{key}"] == pytest.approx(want, abs=1e-5)


def test_two_evaluations_are_compared_in_pairs(run, tmp_path):
  workdir, _ = run
  flags = ["--workdir", str(workdir), "--evaluators", "probe", "--bootstrap", "50"]
  first, second = (str(tmp_path / x / "out.json") for x in "ab")
  evaluate.main([*flags, "--out", first])
  evaluate.main([*flags, "--out", second, "--against", first])
  found = json.loads((tmp_path / "b" / "out.json").read_text())["differences"]
  assert found["probe/colour_knn_top1"] == dict(mean=0.0, low=0.0, high=0.0)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--evaluators", "prob"), "no 'prob' in evaluators/: did you mean probe"),
    (("--option", "probes.k=3"), "no evaluator 'probes'; did you mean probe"),
    (("--option", "probe=3"), r"expected evaluator\.option=value"),
    (("--option", "probe.kk=3"), r"unknown key config\.evaluators: probe\.kk"),
    (("--option", "probe.split=none"), "nothing was put under 'evaluate_none'"),
    (("--option", "probe.split=empty"), "split 'empty' of 'in_memory' has no examples"),
    (("--option", "probe.labels=('kind',)"), "at step 7: .*no label 'kind', only"),
    (("--set", "evaluators=()"), "config.evaluators is empty: name some"),
    (("--set", "model.embed_dim=4"), "is of another model; .* arrays differ"),
    (("--set", "batch_size=7"), "batch 7 is not divisible"),
    (("--set", "data.tokenizer=none.model"), "no tokenizer at none.model"),
    (("--mesh", "data=3"), "uses only a part|does not divide"),
    (("--checkpoint", "/nowhere"), "--checkpoint: no checkpoint in /nowhere"),
  ],
)
def test_what_is_wrong_is_said(run, flags, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    call("--workdir", run[0], *flags)


def test_an_empty_list_of_classes_is_said(run):
  put("test", 13, classes=())
  try:
    with pytest.raises(ValueError, match="names no classes of 'colour'"):
      options = ("--option", "zero_shot.labels=('colour',)")
      call("--workdir", run[0], "--evaluators", "zero_shot", *options)
  finally:
    put("test", 13)


def test_a_config_alone_is_not_enough(capsys):
  with pytest.raises(SystemExit):
    evaluate.parse(["--config", "configs/clip_emoji.py"])
  assert "both --config and --checkpoint" in capsys.readouterr().err


def test_an_evaluation_stays_when_there_is_nothing_to_compare_it_with(run, tmp_path):
  (tmp_path / "b" / "artifacts").mkdir(parents=True)
  other, out = tmp_path / "b" / "x.json", tmp_path / "a" / "x.json"
  other.write_text("{}")
  flags = ["--workdir", str(run[0]), "--evaluators", "probe", "--bootstrap", "50"]
  with pytest.raises(SystemExit):
    evaluate.main([*flags, "--out", str(out), "--against", str(other)])
  assert json.loads(out.read_text())["metrics"]


def test_another_evaluation_has_its_artifacts_beside_it(tmp_path, capsys):
  path = tmp_path / "x.json"
  path.write_text("{}")
  with pytest.raises(SystemExit):
    evaluate.parse(["--workdir", "runs/x", "--against", str(path)])
  assert "no folder artifacts beside it" in capsys.readouterr().err


def test_settings_end_without_a_traceback(run, capsys):
  with pytest.raises(SystemExit) as e:
    evaluate.main(["--workdir", str(run[0]), "--evaluators", "prob"])
  assert e.value.code == 2
  assert capsys.readouterr().err.startswith("error: no 'prob'")


def test_a_config_of_an_older_version_takes_the_defaults_of_new_keys():
  c = config()
  c.model.moe.losses = dict(z=1.0)  # importance is off: it is not to come back
  saved = json.loads(c.to_json())
  del saved["ema_warmup"], saved["model"]["trunk"]["epsilon"]
  del saved["model"]["modalities"]["text"]["eos"]
  read = saved_config.complete(saved)
  assert read.ema_warmup is True and read.model.trunk.epsilon == 1e-6
  assert read.model.modalities.text.eos == -1
  assert set(read.model.moe.losses) == {"z"}
  assert dict(read.model.modalities.image.trunk) == {}
  with pytest.raises(FileNotFoundError, match=r"no config\.json in 'nowhere'"):
    saved_config.read("nowhere")


def test_a_new_version_of_a_protocol_shows_in_the_name(monkeypatch):
  from evaluators import health

  c = config()
  c.evaluators = (("health", 0, {}),)
  setup = setup_lib.build(c)
  monkeypatch.setattr(health.Evaluator, "version", 2, raising=False)
  c.checkpoint.best = ""
  assert [e.name for e in evaluation.build(setup, "")] == ["health_v2"]
  c.checkpoint.best = "health/uniformity/image"
  with pytest.raises(ValueError, match="did you mean health_v2"):
    evaluation.build(setup, "")


def test_a_checkpoint_of_parameters_alone_as_convert_writes(run, tmp_path):
  """It has no step, no average, no data state, and nothing of another objective."""
  c = config()
  setup = setup_lib.build(c)
  with jax.set_mesh(setup.mesh):
    towers = setup.init_state().params["towers"]
  checkpoint.write_params(str(tmp_path), {"towers": towers})
  checkpoint.save_config(str(tmp_path), c)
  found = call("--workdir", tmp_path, "--evaluators", "shape")
  assert (found["step"], found["parameters"]) == (0, "params")
  assert np.isfinite(found["metrics"]["shape/uniformity/image"])


def test_another_tokenizer_is_refused(run, tmp_path):
  workdir, _ = run
  c = config()
  c.data.tokenizer = str(tmp_path / "tokenizer.model")
  (tmp_path / "tokenizer.model").write_bytes(b"one")
  folder = checkpoint.step_folder(str(workdir))
  evaluate.check_tokenizer(folder, c)  # it says nothing of a tokenizer
  (tmp_path / "step_1").mkdir()
  keeper = checkpoint.Checkpointer(str(tmp_path), tiny().checkpoint)
  state = jax.tree.map(np.zeros_like, setup_lib.build(config()).init_state())
  keeper.save(1, state, {"tokenizer": "0123"})
  keeper.close()
  with pytest.raises(ValueError, match=r"another tokenizer \(digest 0123\)"):
    evaluate.check_tokenizer(checkpoint.step_folder(str(tmp_path)), c)


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / "copy")
  files = (p for p in workdir.rglob("step_*/state/**/*") if p.is_file())
  largest = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 8
  largest.write_bytes(content)
  with pytest.raises(ValueError, match="is damaged"):
    call("--workdir", workdir)
