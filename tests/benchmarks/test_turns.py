"""Turns: their order, what is made of their times, and a contender's process."""

import json

import pytest

from benchmarks import turns

SHORT = turns.Seconds(1.0, 0.5)


def test_turns_alternate_and_the_first_round_warms_up():
  order = []

  def turn(name):
    order.append(name)
    return turns.Seconds(float(len(order)), 0.0)

  names = {n: lambda n=n: turn(n) for n in "abc"}
  times = turns.interleave(names, 2)
  assert "".join(order) == "cbaabccba"
  assert [t.wall for t in times["a"]] == [4.0, 9.0]
  assert [t.wall for t in times["c"]] == [6.0, 7.0]


def test_spread_is_that_of_the_quartiles():
  expected = dict(median=3.0, q1=2.0, q3=4.0, min=1.0, max=5.0)
  assert turns.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == expected
  assert set(turns.spread([7.0]).values()) == {7.0}


def test_a_busy_round_leaves_the_ratio_as_it_is():
  base = [turns.Seconds(1.0, 1.0), turns.Seconds(10.0, 1.0), turns.Seconds(1.0, 1.0)]
  ours = [turns.Seconds(2.0, 3.0), turns.Seconds(20.0, 3.0), turns.Seconds(2.0, 3.0)]
  found = turns.ratios(ours, base)
  assert set(found["seconds"].values()) == {2.0}
  assert set(found["cpu_seconds"].values()) == {3.0}
  with pytest.raises(ValueError):
    turns.ratios(ours, base[:2])


@pytest.mark.parametrize(
  ("device", "seconds"),
  [
    (dict(cores=0, data_sheet_tflops=0.016), 1.0),
    (dict(cores=1), 0.5),
    (dict(cores=2), 0.25),
  ],
)
def test_rates_are_of_the_clock_on_a_gpu_and_of_the_process_on_a_cpu(device, seconds):
  row = turns.rated({"gflops_per_example": 2.0}, [SHORT] * 3, 4, device, 32e9)
  assert row["examples_per_second"] == 4 / seconds
  assert row["achieved_tflops"] == 0.008 / seconds
  assert row["share_of_matmul"] == 0.25 / seconds
  assert row.get("mfu") == (0.5 if "data_sheet_tflops" in device else None)
  assert row["seconds"]["median"] == 1.0 and row["cpu_seconds"]["median"] == 0.5
  assert "1.0000 s a step" in turns.line("ours", row)


def test_a_turn_waits_for_its_last_step():
  log = []

  def step():
    log.append("start")
    return lambda: log.append("wait")

  seconds = turns.clocked(step, 3)
  assert log == ["start", "start", "start", "wait"]
  assert seconds.cpu >= 0 and 0 < seconds.wall < 1


def test_a_contender_that_dies_is_named():
  with pytest.raises(RuntimeError, match=r"benchmarks\.contenders\.nobody ended with"):
    turns.Worker("benchmarks.contenders.nobody", {})


def test_a_report_is_written_where_it_was_asked_for(tmp_path, capsys):
  turns.write(None, {"a": 1})
  turns.write(str(tmp_path / "new" / "x.json"), {"a": 1})
  assert json.loads((tmp_path / "new" / "x.json").read_text()) == {"a": 1}
  assert capsys.readouterr().out.count("wrote") == 1
