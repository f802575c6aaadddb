"""What a run says of where it was made."""

import json
import subprocess
import sys

from tests.small import tiny
from training import environment


def test_it_names_device_versions_and_command_without_folders(tmp_path, monkeypatch):
  arguments = ["/a/b/train.py", "--workdir=/c/d/run", "--config", "configs/x.py:seed=1"]
  monkeypatch.setattr(sys, "argv", [*arguments, "--config.init_from=gs://bucket/run"])
  environment.write(str(tmp_path))
  made = environment.read(str(tmp_path))
  assert made["command"] == (
    "python train.py --workdir=run --config configs/x.py:seed=1 "
    "--config.init_from=gs://bucket/run"
  )
  assert made["device"].startswith("8 x ") and "jax " in made["versions"]
  assert environment.read(str(tmp_path / "nowhere")) == {}


def test_flags_that_change_the_program_are_kept_and_places_are_not(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/a/b/dump")
  monkeypatch.setenv("JAX_ENABLE_X64", "0")
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
  monkeypatch.setenv("HOME_OF_XLA_FLAGS", "1")
  made = environment.fingerprint(tiny())
  assert made["flags"]["XLA_FLAGS"] == "--xla_dump_to=dump"
  assert made["flags"]["JAX_ENABLE_X64"] == "0"
  assert not {"JAX_COORDINATOR_ADDRESS", "HOME_OF_XLA_FLAGS"} & made["flags"].keys()
  assert made["processes"] == 1 and "jaxlib " in made["versions"]


def test_the_revision_says_whether_the_tree_is_clean(tmp_path):
  def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

  assert environment.revision(str(tmp_path / "nowhere")) == ""
  git("init", "-q")
  file = tmp_path / "file"
  file.write_text("1")
  git("add", "file")
  git("commit", "-qm", "one")
  clean = environment.revision(str(tmp_path))
  assert len(clean) == 40
  file.write_text("2")
  changed = environment.revision(str(tmp_path))
  assert changed.startswith(f"{clean}+changes.")
  file.write_text("3")
  assert environment.revision(str(tmp_path)) != changed


def test_the_digest_of_the_data_follows_files_manifest_and_options(tmp_path):
  c = tiny()
  c.data.source = "arrayrecord"
  c.data.options = dict(paths=f"{tmp_path}/{{split}}/data*")
  folder = tmp_path / "train"
  folder.mkdir()
  (folder / "data-0").write_text("abc")
  (folder / "manifest.json").write_text("{}")
  first = environment.data_digest(c)
  assert first["files"].startswith("1, ") and list(first["manifests"]) == [
    "train/manifest.json"
  ]
  (folder / "data-0").write_text("abcd")
  assert environment.data_digest(c)["files"] != first["files"]
  (folder / "manifest.json").write_text("{ }")
  assert environment.data_digest(c)["manifests"] != first["manifests"]
  c.data.split = "other"
  assert environment.data_digest(c)["settings"] != first["settings"]


def test_a_resumed_run_says_what_is_not_as_before(tmp_path, monkeypatch):
  c = tiny()
  monkeypatch.setattr(environment, "revision", lambda: "one")
  assert environment.write(str(tmp_path), c) == []
  assert environment.write(str(tmp_path), c) == []
  assert "earlier" not in environment.read(str(tmp_path))
  for now, before in (("two", "one"), ("three", "two")):
    monkeypatch.setattr(environment, "revision", lambda now=now: now)
    (said,) = environment.write(str(tmp_path), c)
    assert said == f"another revision than before: {before}, now {now}"
  kept = environment.read(str(tmp_path))
  assert [e["revision"] for e in kept["earlier"]] == ["one", "two"]
  json.dumps(kept)
