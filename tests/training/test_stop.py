"""What the loop does when it is asked to stop: once, twice, and in an evaluation."""

import contextlib
import signal
import types

import pytest

from training import loop


class Part:
  def __init__(self):
    self.closed = False

  def close(self):
    self.closed = True


def bare(steps):
  """A Run of nothing but what `train` closes; `steps` is its loop."""
  run = object.__new__(loop.Run)
  run.loader, run.writer, run.checkpointer = Part(), Part(), Part()
  run.step, run.config = 0, types.SimpleNamespace(total_steps=5)
  run._steps = steps
  return run


def fails(error):
  def steps(stop):
    raise error

  return steps


def test_a_second_signal_does_not_wait_for_the_save():
  run = bare(fails(KeyboardInterrupt()))
  with pytest.raises(KeyboardInterrupt):
    run.train(None)
  assert run.loader.closed and run.writer.closed and not run.checkpointer.closed
  run = bare(fails(RuntimeError()))
  with pytest.raises(RuntimeError):
    run.train(None)
  assert run.loader.closed and run.writer.closed and run.checkpointer.closed


def test_the_first_signal_is_noted_and_the_second_obeyed():
  before = signal.getsignal(signal.SIGTERM)
  with loop.Stop() as stop:
    assert not stop.agreed(1, 10)
    signal.raise_signal(signal.SIGTERM)
    assert stop.agreed(1, 10) and stop.signal == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGTERM) is before


def evaluating(step, evaluators, saved):
  """A Run after `step`, whose checkpointer adds to `saved`."""
  run = object.__new__(loop.Run)
  run.step, run.pending = step, []
  run.evaluators = [
    types.SimpleNamespace(name=name, due=lambda step, total: True, run=of)
    for name, of in evaluators.items()
  ]
  run.state = types.SimpleNamespace(eval_params={})
  run.writer = types.SimpleNamespace(write=lambda *row: None, flush=lambda: None)
  run.loader = types.SimpleNamespace(state=lambda: {"example": 3})
  run.clock = types.SimpleNamespace(paused=contextlib.nullcontext)
  run.checkpointer = types.SimpleNamespace(
    save=lambda *args: saved.append(args), wait=lambda: saved.append("waited")
  )
  settings = types.SimpleNamespace(every=100, best="second/x")
  data = types.SimpleNamespace(tokenizer="")
  run.config = types.SimpleNamespace(checkpoint=settings, log_every=1, data=data)
  return run


BAR = types.SimpleNamespace(set_postfix_str=lambda text: None)


@pytest.mark.parametrize(("step", "ran"), [(4, ["first"]), (5, ["first", "second"])])
def test_a_signal_leaves_out_evaluators_but_not_the_last_ones(step, ran):
  """They would take the grace period; the last ones would never come again."""
  done, saved, stop = [], [], loop.Stop()

  def evaluator(name):
    def run(params, step):
      done.append(name)
      stop.signal = signal.SIGTERM  # it comes meanwhile
      return {f"{name}/x": 1.0}

    return run

  evaluators = {name: evaluator(name) for name in ("first", "second")}
  assert evaluating(step, evaluators, saved)._after_step(5, stop, BAR)
  assert done == ran
  ((at, _, state, metrics),) = saved
  assert at == step and state == {"example": 3, "tokenizer": ""}
  assert (metrics is None) == (step == 4)  # it cannot be the best one


def test_what_was_trained_is_saved_before_an_evaluator_ends_the_run():
  def breaks(params, step):
    raise RuntimeError("evaluator breaks at step 3: too many dropped")

  saved = []
  with pytest.raises(RuntimeError, match="too many dropped"):
    evaluating(3, {"breaks": breaks}, saved)._after_step(5, loop.Stop(), BAR)
  (at, _, _, metrics), waited = saved
  assert (at, metrics, waited) == (3, None, "waited")
