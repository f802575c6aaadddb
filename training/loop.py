"""The training loop: data -> step -> metrics -> evaluators -> checkpoints."""

from collections.abc import Mapping
import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
from tqdm import tqdm

from input_pipeline import examples, pipeline, tokenizer
from sharding import placement
from training import (
  checkpoint,
  environment,
  errors,
  evaluation,
  parameters,
  wandb_board,
)
from training import metrics as metrics_lib
from training import setup as setup_lib

RUN_AHEAD = 2  # steps dispatched before the host waits: bounds the batches in memory
# Metrics of a step that must be finite, and what messages call them.
FINITE = {
  "loss": "the loss",
  "grad_norm": "the norm of the gradients",
  "param_norm": "the norm of the parameters",
}


class NotFinite(errors.Explained):
  """The loss, or a norm, is not finite; says at which step and what to go back to."""


class Stop:
  """Remembers SIGTERM and SIGINT, so that the loop can save before it ends."""

  def __init__(self):
    self.signal: int | None = None
    self._old = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._old[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    if self.signal is not None:  # asked twice: obey at once
      raise KeyboardInterrupt
    self.signal = number

  def __exit__(self, *exc):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def agreed(self, step: int, every: int) -> bool:
    """Returns whether to stop after `step`; the same answer on every host.

    Several hosts ask each other every `every` steps only: asking waits for the device.
    """
    if jax.process_count() == 1:
      return self.signal is not None
    if step % every:
      return False
    return bool(multihost_utils.process_allgather(np.int32(self.signal or 0)).any())


def run(config, workdir: str) -> int:
  """Trains `config` in `workdir`, resuming from its latest checkpoint if there is one.

  Args:
    config: a recipe's ConfigDict.
    workdir: where checkpoints, metrics.jsonl, config.json and artifacts go.

  Returns:
    The exit status: 0 when done, config.hosts.stopped_status after SIGTERM, 130 when
    interrupted.

  Raises:
    SettingsError: a config that does not fit itself, its data or the checkpoint.
    NotFinite: the loss is not finite; the last good checkpoint is named.
  """
  say = _say if jax.process_index() == 0 else lambda *_: None
  with errors.settings():
    checkpoint.check_workdir(workdir)
    wandb_board.check(config)
    say(f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}")
    say("preparing the data and the tokenizer ...")
    config = pipeline.prepare(config, workdir)
    setup = setup_lib.build(config)
  with jax.set_mesh(setup.mesh), Stop() as stop:
    with errors.settings():
      prepared = Run(setup, workdir, say)
    # Only now: a checkpoint that this config does not fit has been refused.
    if jax.process_index() == 0:
      checkpoint.save_config(workdir, config)
      for line in environment.write(workdir, config):
        say(line)
    return prepared.train(stop)


class Run:
  """One process's part of a run: what the loop holds between steps."""

  def __init__(self, setup: setup_lib.Setup, workdir: str, say):
    self.setup, self.config, self.workdir, self.say = setup, setup.config, workdir, say
    with contextlib.ExitStack() as undo:  # an error must not leave threads behind
      # Not the process: where `tensor` spans hosts, several hold the same rows.
      index, count = placement.data_shard(setup.mesh)
      self.loader = pipeline.train_loader(
        self.config, process_index=index, process_count=count
      )
      undo.callback(self.loader.close)
      self.checkpointer = checkpoint.Checkpointer(workdir, self.config.checkpoint, say)
      undo.callback(self.checkpointer.close)
      self.state = self._first_state()
      self.step = int(self.state.step)
      board = wandb_board.start(self.config, workdir)
      self.writer = metrics_lib.Writer(workdir, resume_step=self.step, board=board)
      undo.callback(self.writer.close)
      self.evaluators = evaluation.build(setup, workdir)
      undo.pop_all()
    self.clock = metrics_lib.StepClock()
    self.pending: list[tuple[int, Mapping]] = []

  def _first_state(self):
    if self.checkpointer.latest_step() is None:
      for key in ("init_from", "frozen_from"):
        if self.config[key]:  # early: the rest takes minutes
          checkpoint.step_folder(self.config[key], f"config.{key}")
      self.say("initialising the parameters ...")
      state = self.setup.init_state()
      if self.config.init_from:
        only = tuple(self.config.init_only)
        state = state.starting_from(self._taken("init_from", state.params, only))
      if self.config.frozen_from:
        frozen = self._taken("frozen_from", state.frozen)
        state = dataclasses.replace(state, frozen=frozen)
      return state
    state, data = self.checkpointer.restore(self.setup.abstract_state())
    self._check_tokenizer(data.get("tokenizer", ""))
    self.loader.restore(data)
    self.say(f"resuming from step {int(state.step)} of {self.config.total_steps}")
    return state

  def _taken(self, key: str, params, only: tuple[str, ...] = ()):
    """Returns `params` with what the checkpoint has that config.<key> names."""
    shardings = jax.tree.map(lambda x: x.sharding, params)
    source = self.config[key]
    where = f"config.{key}"
    taken, report = parameters.init_from(source, params, shardings, where, only)
    self.say(f"took from {source}:")
    self.say("\n".join(parameters.taken(params, taken)))
    self.say(f"{where}: not taken or absent" + (f", of {only}:" if only else ":"))
    self.say("\n".join(report) or "  none")
    return taken

  def _tokenizer(self) -> str:
    path = self.config.data.tokenizer
    return tokenizer.fingerprint(path) if path else ""

  def _check_tokenizer(self, saved: str) -> None:
    now = self._tokenizer()
    if saved != now:
      raise ValueError(
        f"the checkpoint in {self.workdir} was trained with another tokenizer (digest "
        f"{saved or 'of none'}, now {now or 'of none'}): its ids mean other words. Put "
        f"the old one back at config.data.tokenizer = {self.config.data.tokenizer!r}, "
        "or start anew in another --workdir. A missing one was trained on the captions "
        "of config.data, which may have changed."
      )

  def train(self, stop: Stop) -> int:
    """Runs the remaining steps; returns the exit status."""
    parts: list[Any] = [self.loader, self.writer, self.checkpointer]
    try:
      if self.step < self.config.total_steps:
        return self._steps(stop)
      self.say(f"already at step {self.step}: nothing to train")
      return 0
    except KeyboardInterrupt:  # a second signal: a save that runs is not waited for
      parts.pop()
      raise
    finally:
      for part in parts:
        part.close()

  def _steps(self, stop: Stop) -> int:
    total = self.config.total_steps
    with errors.settings():
      train_step, flops, batches = self._compile()
    bar = tqdm(
      total=total,
      initial=self.step,
      unit="step",
      desc=self.config.name,
      disable=jax.process_index() != 0,
      mininterval=0.5 if sys.stderr.isatty() else 10.0,
      dynamic_ncols=True,
      smoothing=0.05,
    )
    self.clock.start()
    with bar:
      while self.step < total:
        with self.clock.waiting(), errors.settings(examples.TooManyDropped):
          batch = next(batches)
        self.state, values = train_step(self.state, self.setup.put(batch))
        self.step += 1
        self._keep(values)
        bar.update()
        if self.step % self.config.log_every == 0 or self.step == total:
          self._log(flops, bar)
        if self._after_step(total, stop, bar):
          return self._stopped(stop)
    self.checkpointer.wait()
    return 0

  def _compile(self):
    first = next(self.loader)
    step = self.setup.train_step()
    compiled = {}  # by shapes: config.data.buckets makes several

    def of(state, batch):
      shapes = tuple(sorted((key, x.shape) for key, x in batch.items()))
      if shapes not in compiled:
        self.say("compiling the train step ...")
        started = time.monotonic()
        compiled[shapes] = step.lower(state, batch).compile()
        self.say(f"compiled in {time.monotonic() - started:.0f} s")
      return compiled[shapes]

    flops = metrics_lib.step_flops(of(self.state, self.setup.put(first)), self.config)
    run = lambda state, batch: of(state, batch)(state, batch)  # noqa: E731
    return run, flops, itertools.chain([first], self.loader)

  def _keep(self, values: Mapping) -> None:
    self.pending.append((self.step, values))
    if len(self.pending) > RUN_AHEAD:
      jax.block_until_ready(self.pending[-1 - RUN_AHEAD][1]["loss"])

  def _fetch(self) -> dict:
    """Returns the newest values on the host, once all are known to be finite.

    The loss is of the parameters before the step, and could still be good.
    """
    fetched = [(s, jax.device_get(v)) for s, v in self.pending]
    self.pending = []
    for step, values in fetched:
      for name, spoken in FINITE.items():
        if math.isfinite(values[name]):
          continue
        last = self.checkpointer.latest_step()
        good = self.checkpointer.path(last) if last is not None else "none was saved"
        raise NotFinite(
          f"{spoken} is {values[name]} at step {step}. Last good checkpoint: {good}. "
          "Lower config.optimizer.lr or config.optimizer.clip, or look at the data."
        )
    self.writer.write_losses([(s, float(v["loss"])) for s, v in fetched])
    return fetched[-1][1] if fetched else {}

  def _log(self, flops: float | None, bar: tqdm) -> None:
    values = self._fetch()
    self.checkpointer.look()
    timing = self.clock.lap(self.config.batch_size, flops)
    row = {**values, **timing, **metrics_lib.memory()}
    row.update({f"dropped/{k}": v for k, v in self.loader.dropped.items()})
    self.writer.write(self.step, row)
    self.writer.warn_of_collapse(self.step, values, self.config)
    bar.set_postfix_str(
      f"loss {values['loss']:.3f}, {timing['examples_per_s']:.0f} ex/s, "
      f"data-wait {timing['data_wait']:.1%}"
    )

  def _after_step(self, total: int, stop: Stop, bar: tqdm) -> bool:
    """Evaluates and saves what is due; returns whether to stop."""
    stopping = stop.agreed(self.step, self.config.log_every)
    results = {}
    every, last = self.config.checkpoint.every, self.step == total
    due = [e for e in self.evaluators if e.due(self.step, total)]
    due = due if last or not stopping else []  # the last figures never come again
    saving = last or (every and self.step % every == 0)
    if not (due or saving or stopping):
      return False
    if self.pending:
      self._fetch()  # never evaluate or save a state whose loss was not looked at
    with self.clock.paused():
      try:
        for evaluator in due:
          stopping = stopping or stop.agreed(self.step, 1)
          if stopping and not last:  # the grace period is for saving
            break
          bar.set_postfix_str(f"evaluating {evaluator.name} ...")
          results.update(evaluator.run(self.state.eval_params, self.step))
      except RuntimeError:
        # What was trained is good. Several hosts save together or not at all.
        if jax.process_count() == 1:
          self._save(None)
          self.checkpointer.wait()
        raise
      if results:
        self.writer.write(self.step, {f"eval/{k}": v for k, v in results.items()})
      if saving or stopping:
        self._save(self._complete(results))
    return stopping

  def _save(self, results: dict | None) -> None:
    self.writer.flush()  # a bucket holds whole files only: as far as the checkpoint
    data = {**self.loader.state(), "tokenizer": self._tokenizer()}
    self.checkpointer.save(self.step, self.state, data, results)

  def _complete(self, results: dict) -> dict | None:
    # A step at which the evaluator that decides did not run cannot be the best one.
    decides = self.config.checkpoint.best.partition("/")[0]
    ran = {name.partition("/")[0] for name in results}
    return results if decides in ran else None

  def _stopped(self, stop: Stop) -> int:
    self.checkpointer.wait()
    self.say(
      f"stopped at step {self.step} of {self.config.total_steps} and saved "
      f"{self.checkpointer.path(self.step)}. Run the same command again to resume."
    )
    logging.info("stopped by signal %s", stop.signal)
    if stop.signal == signal.SIGINT:
      return errors.INTERRUPTED
    return self.config.hosts.stopped_status


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
