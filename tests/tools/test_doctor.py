"""Each line of the doctor's screen, for a run that is well and for broken ones."""

import runpy

import numpy as np
import pytest

from input_pipeline.sources import in_memory
from tests.small import tiny
from tools import doctor, doctor_checks
from tools.doctor import FAIL, OK, SKIP, WARN

CHECKS = {name: (check, needs) for name, check, needs in doctor_checks.CHECKS}


def recipe(**changes):
  """A tiny recipe whose data is in memory."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
  captions = [
    "".join("abcd "[i // 5**k % 5] for k in range(5)) + "a" for i in range(40)
  ]
  in_memory.put("train", image=images, caption=captions)
  c = tiny(**changes)
  c.model.modalities.text.vocab = 270
  c.data.source = "in_memory"
  c.data.options = dict(name="{split}")
  c.data.transforms = c.data.eval_transforms = (
    ("resize", {"size": (8, 8)}),
    ("normalize", {}),
    ("tokenize", {}),
  )
  c.data.tokenizer = "{workdir}/tokenizer.model"
  c.data.prefetch, c.mesh.data = 1, -1
  return c


def lines(found, *names):
  """The lines of some checks, by name."""
  checks = [(name, *CHECKS[name]) for name in names]
  return {line.name: line for line in doctor.examine(checks, found)}


def one(name, found):
  return lines(found, name)[name]


def test_a_run_that_is_well(tmp_path):
  """All that needs a config, in one go: it shares the compiled step."""
  workdir = tmp_path / "new"
  found = {"settings": recipe(), "workdir": str(workdir), "thorough": True}
  names = [n for n in CHECKS if n not in ("settings", "versions")]
  got = lines(found, *names)
  assert {n: line.level for n, line in got.items() if n != "speed"} == dict.fromkeys(
    (n for n in names if n != "speed"), OK
  ), list(map(str, got.values()))
  assert got["speed"].level in (OK, WARN)  # of a machine, not of the code
  assert "a step" in got["speed"].text and "a batch" in got["speed"].text
  assert "16 examples, 2 a device" in got["batch"].text
  assert "40 examples of 'in_memory'" in got["data"].text
  assert not workdir.exists()  # it writes nothing that stays


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(batch_size=33), "33 is not divisible"),
    (dict(mesh=dict(data=3)), "does not divide 8 devices"),
    (dict(objective=dict(name="contrastiv")), "did you mean contrastive"),
  ],
)
def test_what_does_not_fit(changes, said):
  config = recipe()
  for key, value in changes.items():
    config[key].update(value) if isinstance(value, dict) else config.update(
      {key: value}
    )
  line = one("batch", {"settings": config, "devices": "cpu"})
  assert line.level == FAIL and said in line.text


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  line = one("workdir", {"workdir": str(tmp_path / "file" / "run")})
  assert line.level == FAIL and "is not writable" in line.text


def test_data_that_cannot_be_read(tmp_path):
  config = recipe()
  config.data.source, config.data.options = "jsonl", dict(paths="nowhere/*.jsonl")
  found = {"settings": config, "workdir": str(tmp_path), "mesh": 0, "share": (0, 1)}
  line = one("data", found)
  assert line.level == FAIL and "nowhere" in line.text


def test_a_disk_and_a_memory_that_are_too_small(tmp_path, monkeypatch):
  found = {"settings": recipe(), "workdir": str(tmp_path), "writable": True}
  line = one("disk", found | {"state_bytes": 10**18})
  assert line.level == FAIL and "config.checkpoint.keep" in line.text

  class Step:
    """A compiled program of 3 GiB."""

    def compile(self):
      return self

    def memory_analysis(self):
      return self

    argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 2**31
    temp_size_in_bytes = 2**30

  found = {"step": Step(), "thorough": True, "devices": "x"}
  for gib, level in ((4, OK), (3.1, WARN), (2, FAIL), (None, WARN)):
    limit = gib and gib * 2**30
    monkeypatch.setattr(doctor_checks, "device_limit", lambda limit=limit: limit)
    line = one("memory", dict(found))
    assert line.level == level and "3.00" in line.text
    assert ("config.mesh.fsdp" in line.text) == (gib in (3.1, 2))


def test_a_loader_that_is_too_slow():
  assert "keeps up" in doctor_checks.faster(0.1, 0.05)
  with pytest.raises(doctor.Warn, match=r"wait 75% of the time.*config\.data\.threads"):
    doctor_checks.faster(0.1, 0.4)


def test_versions(monkeypatch):
  assert one("versions", {}).level == OK
  real = doctor_checks._version
  changed = {"jaxlib": "0.9.2"}
  monkeypatch.setattr(doctor_checks, "_version", lambda p: changed.get(p) or real(p))
  line = one("versions", {})
  assert line.level == WARN and "jaxlib 0.9.2: their releases differ" in line.text
  monkeypatch.setattr(doctor_checks, "_version", lambda p: p != "optax" and real(p))
  line = one("versions", {})
  assert line.level == FAIL and "not installed: optax" in line.text
  monkeypatch.setattr(doctor_checks, "PYTHON", (9, 0))
  assert "expected 9.0 or newer" in one("versions", {}).text


def test_an_accelerator_that_jax_does_not_see(monkeypatch):
  monkeypatch.setattr(doctor_checks.glob, "glob", lambda path: ["it"] * ("nv" in path))
  line = one("devices", {"hosts": 1})
  assert line.level == WARN and "has an NVIDIA GPU: pip install 'jax[cuda13]'" in str(
    " ".join(line.text.split())
  )


def test_hosts_that_do_not_meet(monkeypatch):
  def apart(*_):
    raise doctor_checks.distributed.Apart("process 2 of 3 never joined")

  monkeypatch.setattr(doctor_checks.distributed, "initialize", apart)
  line = one("hosts", {"settings": recipe()})
  assert line.level == FAIL and "process 2 of 3 never joined" in line.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_settings_and_the_whole_screen(tmp_path, capsys, monkeypatch):
  argv = ["doctor", "--config=configs/clip_b16.py:runlocal", "--quick"]
  more = [f"--workdir={tmp_path}", "--config.batch_sise=3"]
  monkeypatch.setattr("sys.argv", argv + more)
  assert doctor.main() == 1
  out = " ".join(capsys.readouterr().out.split())
  assert "FAIL settings" in out and 'Did you mean "batch_size"' in out
  assert "SKIP batch" in out and "speed" not in out
  assert out.endswith("1 to mend: settings")
  monkeypatch.setattr("sys.argv", argv)
  assert doctor.main() == 1
  assert "--config and --workdir are needed" in capsys.readouterr().out


def test_a_check_that_is_itself_beaten_ends_nothing():
  def broken(found):
    return found["no such key"]

  checks = (("broken", broken, ()), ("next", lambda _: "fine", ()))
  first, second = doctor.examine(checks, {})
  assert (first.level, second.level) == (FAIL, OK)
  assert first.text == "KeyError: 'no such key'"
  (skipped,) = doctor.examine([("after", broken, ("mesh",))], {})
  assert skipped.level == SKIP


def test_a_warning_is_one_where_the_module_is_run(monkeypatch, capsys):
  def slow(found):
    raise doctor.Warn("slow")

  monkeypatch.setattr(doctor_checks, "CHECKS", (("speed", slow, ()),))
  with pytest.raises(SystemExit) as end:
    runpy.run_path(doctor.__file__, run_name="__main__")
  assert end.value.code == 0
  assert capsys.readouterr().out == "WARN speed     slow\nready, but look at speed\n"


def test_a_line_fits_the_screen():
  text = str(doctor.Line("data", FAIL, "word\n" * 400))
  assert all(len(row) <= doctor.WIDTH for row in text.splitlines())
  assert text.endswith(" ...") and len(text.splitlines()) < 8
