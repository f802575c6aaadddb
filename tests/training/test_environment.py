"""What a run says of where it was made."""

import sys

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
