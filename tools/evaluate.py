"""Evaluates a checkpoint by the evaluators that training runs, and writes JSON.

python -m tools.evaluate --workdir runs/limoe
python -m tools.evaluate --config configs/clip_b16.py:data=my_pairs \\
  --checkpoint runs/start --evaluators retrieval health --out results/retrieval.json

A workdir alone says which recipe (config.json) and which checkpoint (the newest). On
several devices the parameters and the batch are split over all of them. Artifacts, per
query too, go beside --out; docs/evaluate.md explains what is measured.
"""

import argparse
import ast
from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from absl import logging
from etils import epath
import jax
from ml_collections import ConfigDict
import orbax.checkpoint as ocp

from evaluators import bootstrap
from input_pipeline import pipeline, tokenizer
from model import catalogue
from sharding import distributed
from tools import aot_compile, explain_sharding, saved_config
from training import checkpoint, environment, errors, evaluation
from training import setup as setup_lib

LOW, HIGH = bootstrap.LOW, bootstrap.HIGH


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, evaluates, prints a table and writes the JSON."""
  flags = parse(argv)
  logging.set_verbosity(logging.ERROR)  # orbax warns of a file that no part has
  with errors.shown(debug=flags.debug), errors.settings(*errors.KINDS, RuntimeError):
    distributed.initialize()
    result = run(flags)
    if jax.process_index() == 0:
      write(result, flags)  # what was measured stays if --against is of other queries
      result |= {"differences": compared(result, flags)}
      print(table(result))
      print(f"written: {write(result, flags)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    SystemExit: neither a workdir nor a config and a checkpoint.
  """
  parser = argparse.ArgumentParser(
    prog="python -m tools.evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", default="", help="of a run: its config.json, checkpoint, tokenizer")
  add("--config", default="", help="instead of the workdir's: configs/x.py or x.py:arg")
  add("--checkpoint", default="", help="a workdir or a step's folder; the workdir's")
  add(
    "--evaluators",
    nargs="+",
    action="extend",
    default=[],
    help="names in the config, files of evaluators/, or name=file; the config's",
  )
  add(
    "--option", nargs="+", action="extend", default=[], help="e.g. retrieval.ks=(1,10)"
  )
  add(
    "--set",
    nargs="+",
    action="extend",
    default=[],
    help="config keys, e.g. batch_size=64",
  )
  add(
    "--mesh", default="", help="e.g. data=2,fsdp=4; default: the config's, if it fits"
  )
  add("--bootstrap", type=int, default=1000, help="resamples of intervals; 0: none")
  add("--against", default="", help="the JSON of another evaluation, to compare with")
  add("--out", default="", help="JSON; default: <workdir>/evaluation/step_<n>.json")
  add("--debug", action="store_true", help="show the tracebacks of wrong settings too")
  flags = parser.parse_args(argv)
  if not flags.workdir and not (flags.config and flags.checkpoint):
    parser.error("give a --workdir, or both --config and --checkpoint")
  if flags.bootstrap < 0:
    parser.error(f"--bootstrap {flags.bootstrap}: expected 0 or more")
  if flags.against and not epath.Path(flags.against).is_file():
    parser.error(f"--against {flags.against}: no such file")
  if flags.against and not (epath.Path(flags.against).parent / "artifacts").is_dir():
    parser.error(f"--against {flags.against}: no folder artifacts beside it")
  flags.checkpoint = flags.checkpoint or flags.workdir
  return flags


def run(flags: argparse.Namespace) -> dict[str, Any]:
  """Does what the flags ask for; every host enters and returns the same.

  Raises:
    FileNotFoundError: no checkpoint, config.json or tokenizer.
    ValueError: settings that do not fit each other or the checkpoint, or what an
      evaluator cannot measure.
  """
  folder = checkpoint.step_folder(flags.checkpoint, "--checkpoint")
  home = flags.workdir or str(home_of(folder))
  config, note = settled(load(flags, home), flags)
  config = prepared(config, home)
  check_tokenizer(folder, config)
  config.evaluators = entries(config, flags)
  config.checkpoint.best = ""  # it picks while training
  setup = setup_lib.build(config)
  with jax.set_mesh(setup.mesh):
    # Before the parameters are read: an unknown option is answered at once.
    built = evaluation.build(setup, str(epath.Path(out(flags)).parent))
    params, which = evaluation.restore(str(folder), setup)
    step = step_of(folder)
    metrics: dict[str, float] = {}
    for scheduled in built:
      metrics |= measured(scheduled, params, step)
  return {
    "config": config.name,
    "checkpoint": environment.without_folders(str(folder)),
    "step": step,
    "parameters": which,
    "mesh": dict(setup.mesh.shape),
    "note": note,
    "evaluators": {s.name: s.protocol() for s in built},
    "metrics": metrics,
    "made": environment.describe(),
  }


def compared(
  result: Mapping[str, Any], flags: argparse.Namespace
) -> dict[str, dict[str, float]]:
  """Returns the paired differences to the evaluation of --against; {} without one."""
  if not flags.against:
    return {}
  here, there = (
    str(epath.Path(path).parent / "artifacts") for path in (out(flags), flags.against)
  )
  names = [p["options"]["name"] for p in result["evaluators"].values()]
  return bootstrap.compared(here, there, names, flags.bootstrap or 1000)


def measured(scheduled: Any, params: Any, step: int) -> dict[str, float]:
  """Returns an evaluator's figures; what it cannot measure is a ValueError."""
  try:
    return scheduled.run(params, step)
  except RuntimeError as e:
    if isinstance(e.__cause__, errors.KINDS):
      raise ValueError(str(e)) from e
    raise


def home_of(folder: Any) -> Any:
  """Returns the workdir of a step's folder, or the folder itself of a lone one."""
  return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def load(flags: argparse.Namespace, home: str) -> ConfigDict:
  """Returns the recipe that --config names, else that of the workdir."""
  if flags.config:
    config = explain_sharding.load(flags.config)
  else:
    config = saved_config.read(home)
  aot_compile.override(config, flags.set)
  config.unlock()
  return config


def settled(
  config: ConfigDict, flags: argparse.Namespace
) -> tuple[ConfigDict, list[str]]:
  """Returns the config for these devices, and what was changed.

  A mesh of another number of devices becomes fsdp over all of these: no figure depends
  on it, and parameters that fitted there need not fit on one device here.
  """
  notes = []
  if flags.mesh:
    sizes = explain_sharding.parse_mesh(flags.mesh)
    config.mesh = ConfigDict(dict.fromkeys(config.mesh, 1) | sizes)
  sizes, count = dict(config.mesh), jax.device_count()
  fixed = math.prod(s for s in sizes.values() if s > 0)
  fits = count % fixed == 0 if -1 in sizes.values() else count == fixed
  if not flags.mesh and not fits:
    notes.append(f"mesh: fsdp={count} instead of {sizes}")
    config.mesh = ConfigDict(dict(data=1, fsdp=count, expert=1, tensor=1))
  config.microbatches = 1
  return config, notes


def prepared(config: ConfigDict, home: str) -> ConfigDict:
  """Returns the config with its files found; none is trained here.

  Raises:
    FileNotFoundError: no tokenizer: a new one's ids would mean other words.
  """
  path = str(config.data.tokenizer).replace("{workdir}", home)
  if path and not epath.Path(path).exists():
    beside = epath.Path(home) / epath.Path(path).name  # the workdir was moved
    if not beside.exists():
      raise FileNotFoundError(
        f"no tokenizer at {path} or {beside}: evaluation trains none, as its ids would "
        "mean other words than the model's. Give the --workdir of the run, or --set "
        "data.tokenizer=FILE"
      )
    path = str(beside)
  config.data.tokenizer = path
  return pipeline.prepare(config, home)


def check_tokenizer(folder: Any, config: ConfigDict) -> None:
  """Raises ValueError if the checkpoint was trained with another tokenizer."""
  if not (folder / "data").exists() or not config.data.tokenizer:
    return
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    saved = reader.restore(folder / "data").get("tokenizer", "")
  now = tokenizer.fingerprint(config.data.tokenizer)
  if saved and saved != now:
    raise ValueError(
      f"the checkpoint {folder} was trained with another tokenizer (digest {saved}) "
      f"than {config.data.tokenizer} ({now}): its ids mean other words. Name the right "
      "one by --set data.tokenizer=FILE"
    )


def entries(config: ConfigDict, flags: argparse.Namespace) -> tuple[Any, ...]:
  """Returns `config.evaluators` as the flags want them.

  Raises:
    ValueError: none at all, or an option of none of them.
  """
  known = [(file, dict(options)) for file, _, options in config.evaluators]
  named = {o.get("name", file): (file, o) for file, o in known}
  chosen = {}
  for given in flags.evaluators or named:
    name, equals, file = given.partition("=")
    file, options = (file, {}) if equals else named.get(name, (name, {}))
    chosen[name] = file, dict(options)
  if not chosen:
    raise ValueError("config.evaluators is empty: name some, --evaluators retrieval")
  for entry in flags.option:
    name, key, value = option(entry)
    if name not in chosen:
      raise ValueError(
        f"--option {entry!r}: no evaluator {name!r}; "
        f"{catalogue.near_misses(name, list(chosen))}"
      )
    chosen[name][1][key] = value
  out = []
  for name, (file, options) in chosen.items():
    cls = catalogue.find("evaluators", file, "Evaluator")
    if "bootstrap" in {f.name for f in dataclasses.fields(cls)}:
      options = {"bootstrap": flags.bootstrap} | options
    out.append((file, 0, {"name": name} | options))
  return tuple(out)


def option(entry: str) -> tuple[str, str, Any]:
  """Returns (evaluator, option, value) of "retrieval.ks=(1,10)".

  Raises:
    ValueError: another form.
  """
  path, equals, text = entry.partition("=")
  name, dot, key = path.partition(".")
  if not equals or not dot:
    raise ValueError(
      f"--option {entry!r}: expected evaluator.option=value, e.g. retrieval.limit=100"
    )
  try:
    return name, key, ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return name, key, text


def step_of(folder: Any) -> int:
  """Returns the step of a checkpoint's folder; 0 where its name says none."""
  number = folder.name.removeprefix("step_")
  return int(number) if number.isdigit() else 0


def out(flags: argparse.Namespace) -> str:
  """Returns the path of the JSON."""
  if flags.out:
    return flags.out
  folder = checkpoint.step_folder(flags.checkpoint, "--checkpoint")
  home = flags.workdir or str(home_of(folder))
  return str(epath.Path(home) / "evaluation" / f"step_{step_of(folder):08d}.json")


def write(result: Mapping[str, Any], flags: argparse.Namespace) -> str:
  """Writes the JSON; returns its path."""
  path = epath.Path(out(flags))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1, default=_plain) + "\n")
  return str(path)


def _plain(value: Any) -> Any:
  return dict(value) if isinstance(value, Mapping) else str(value)


def table(result: Mapping[str, Any]) -> str:
  """Returns the figures as text, a line each, with intervals where there are some."""
  metrics = result["metrics"]
  lines = [
    f"{result['config']}, step {result['step']}, {result['parameters']}",
    *result["note"],
  ]
  for name, protocol in result["evaluators"].items():
    split = protocol["options"].get("split", "")
    version = f"{protocol['evaluator']} version {protocol['version']}"
    lines.append(f"\n{name}: {version}, split {split}")
    own = {k: v for k, v in metrics.items() if k.startswith(f"{name}/")}
    bounds = {k for k in own if k.endswith((LOW, HIGH))}
    for key, value in own.items():
      if key in bounds:
        continue
      line = f"  {key.removeprefix(f'{name}/'):<36} {value:10.4f}"
      if key + LOW in bounds:
        line += f"  [{own[key + LOW]:.4f}, {own[key + HIGH]:.4f}]"
      lines.append(line)
  if result.get("differences"):
    lines.append("\npaired differences, this less the other:")
  for key, d in result.get("differences", {}).items():
    lines.append(f"  {key:<36} {d['mean']:+10.4f}  [{d['low']:+.4f}, {d['high']:+.4f}]")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
