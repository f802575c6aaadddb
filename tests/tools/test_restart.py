"""The wrapper that starts a run again, around commands that only count."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from configs import base

SCRIPT = pathlib.Path(__file__).parents[2] / "tools" / "restart.sh"


def start(folder, command, wait="0"):
  env = os.environ | {"RESTART_S": wait}
  arguments = ["bash", str(SCRIPT), "bash", "-c", command]
  return subprocess.Popen(
    arguments,
    cwd=folder,
    env=env,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


@pytest.mark.parametrize("last", [0, 1, 2, 130])
def test_it_starts_again_after_a_lost_host_and_not_after_an_end(tmp_path, last):
  # 75 twice, 137 once (killed), then the last status.
  command = f"echo x >> n; set -- 75 75 137 {last}; eval exit \\${{$(wc -l < n)}}"
  process = start(tmp_path, command)
  _, err = process.communicate(timeout=60)
  assert process.returncode == last
  assert (tmp_path / "n").read_text() == 4 * "x\n"
  assert err.count("starting again") == 3 and "exit status 137" in err


def test_told_to_stop_it_waits_for_the_save_and_does_not_start_again(tmp_path):
  command = "echo x >> n; trap 'sleep 1; echo saved >> n; exit 75' TERM; touch up; "
  process = start(tmp_path, command + "while :; do sleep 0.05; done")
  while not (tmp_path / "up").exists():
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 75
  assert (tmp_path / "n").read_text() == "x\nsaved\n"


def test_a_signal_to_the_whole_group_reaches_the_command_once(tmp_path):
  command = "trap 'echo t >> n' TERM; touch up; "
  command += "for i in {1..200}; do sleep 0.02; [ -e n ] && sleep 1 && exit 75; done"
  process = start(tmp_path, command)
  while not (tmp_path / "up").exists():
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGTERM)
  time.sleep(0.2)
  os.killpg(process.pid, signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 75 and (tmp_path / "n").read_text() == "t\n"


def test_it_can_be_stopped_while_it_waits(tmp_path):
  process = start(tmp_path, "echo x >> n; exit 75", wait="100")
  while not (tmp_path / "n").exists():
    time.sleep(0.02)
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 75 and (tmp_path / "n").read_text() == "x\n"


def test_the_page_names_keys_that_exist():
  page = (SCRIPT.parents[1] / "docs" / "launch.md").read_text()
  keys = set(re.findall(r"config\.([a-z_.]+[a-z])(?![\w.]*\()", page))
  assert keys >= {"hosts.lost_s", "hosts.join_s", "compilation_cache", "wandb"}
  config = base.get_config()
  for key in keys - {"json"}:
    node = config
    for part in key.split("."):
      assert part in node, f"config.{key}"
      node = node[part]
