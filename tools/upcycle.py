"""Writes the start of a sparse model from a checkpoint: dense, or of other experts.

python -m tools.upcycle --from runs/clip --config configs/limoe_x.py --out runs/start
python train.py --config configs/limoe_x.py --config.init_from=runs/start ...

A dense checkpoint is upcycled (arXiv 2212.05055); a sparse one gets as many experts as
the config, or --experts, says. What equals the checkpoint's model then, and what does
not, is written in model/encoders/upcycle.py. Takes the parameters, not their average.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import jax

from model.encoders import stacking, upcycle
from model.moe.config import WHERE, MoeConfig
from tools import explain_sharding
from training import checkpoint, errors


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, writes the checkpoint and prints what it is made of."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.upcycle",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--from", dest="source", required=True, help="a run's workdir or a step's folder"
  )
  parser.add_argument(
    "--config", required=True, help="of the sparse model: configs/x.py or x.py:arg"
  )
  parser.add_argument("--out", required=True, help="a new folder, for config.init_from")
  parser.add_argument("--experts", type=int, help=f"instead of {WHERE}.experts")
  parser.add_argument(
    "--noise", type=float, default=0.0, help="std of the routers' kernels, or added"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the noise")
  parser.add_argument(
    "--keep", type=_indices, default=(), help="fewer experts: which stay, e.g. 0,2,5"
  )
  parser.add_argument(
    "--kept_mass", type=float, default=1.0, help="fewer experts: the factor of `down`"
  )
  print(run(parser.parse_args(argv)))


def run(flags: argparse.Namespace) -> str:
  """Does what the flags ask for; returns what to print.

  Raises:
    FileNotFoundError: no checkpoint, or no config.json of a sparse one.
    ValueError: parameters that do not make the config's trunks.
  """
  config = explain_sharding.load(flags.config)
  if flags.experts is not None:
    config.model.moe.experts = flags.experts
  before = checkpoint.read_params(flags.source, "--from")
  towers, how = converted(before["towers"], config.model, flags)
  made = checkpoint.flatten(towers)
  wanted = checkpoint.flatten(explain_sharding.abstract_params(config)["towers"])
  odd = checkpoint.differences(made, wanted)
  inside = [line for line in odd if line.lstrip().startswith("trunk")]
  if inside:
    raise ValueError(
      f"{flags.source} does not fill the trunks of {flags.config}; {len(inside)} "
      "arrays differ:\n" + "\n".join(inside[: checkpoint.SHOWN]) + "\n"
      f"Set config.model as the config.json of that run has it, but for {WHERE}."
    )
  taken = {
    path: leaf
    for path, leaf in made.items()
    if path in wanted and leaf.shape == wanted[path].shape
  }
  checkpoint.write_params(flags.out, {**before, "towers": checkpoint.nest(taken)})
  checkpoint.save_config(flags.out, config)
  found = report(before, taken, odd)
  return "\n".join([*how, *found, f"use it: --config.init_from={flags.out}"])


def converted(
  towers: Mapping[str, Any], model: Any, flags: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
  """Returns the towers' parameters for the config's model, and lines on how."""
  moe = upcycle.target(model)
  key = jax.random.key(flags.seed)
  if not any("/moe/" in path for path in checkpoint.flatten(towers)):
    if flags.keep or flags.kept_mass != 1:
      raise ValueError(f"--keep and --kept_mass: {flags.source} has no experts to keep")
    new = upcycle.upcycle(towers, model, key, flags.noise)
    even = moe.experts / moe.k
    return new, [f"upcycled: {_size(moe)}", *_room(moe, even, even)]
  old = MoeConfig.from_config(_options(flags.source))
  upcycle.check_router(old.router)
  new = upcycle.resize_experts(
    stacking.unstack_layers(towers),
    moe.experts,
    key,
    flags.noise,
    k=(old.k, moe.k),
    keep=flags.keep,
    kept_mass=flags.kept_mass,
  )
  lines = [f"resized: {_size(old)} -> {_size(moe)}"]
  if moe.experts > old.experts:
    ratio = moe.experts / old.experts * old.k / moe.k
    lines += _room(moe, old.capacity * ratio, old.capacity_eval * ratio)
  return stacking.stack_layers(new) if model.scan else new, lines


def report(
  before: Mapping[str, Any], taken: Mapping[str, Any], odd: Sequence[str]
) -> list[str]:
  """Returns lines on what was copied, made anew and left out.

  Args:
    before: the checkpoint's parameters.
    taken: path -> array of the towers that were written.
    odd: `checkpoint.differences` of the towers made and those wanted.
  """
  parts: dict[str, list[Any]] = {"router": [], "experts": [], "copied": []}
  for path, leaf in taken.items():
    kinds = [kind for kind in parts if f"/moe/{kind}/" in path]
    parts[kinds[0] if kinds else "copied"].append(leaf)
  for name, tree in before.items():
    if name != "towers":
      parts["copied"] += jax.tree.leaves(tree)
  new = [line for line in odd if line.endswith("not in the file")]
  left = [line for line in odd if line not in new]
  return [
    f"copied as they are: {_count(parts['copied'])}",
    f"experts, copies: {_count(parts['experts'])}",
    f"routers: {_count(parts['router'])}",
    "left out: optimizer, moving average, data state" + (", and" if left else ""),
    *left,
    *(["new, as the model will initialise them:", *new] if new else []),
  ]


def _room(moe: MoeConfig, training: float, evaluating: float) -> list[str]:
  """Says where equal gates, which all go to the first experts, overflow their slots."""
  if moe.dispatch == "dropless":
    return []
  needs = {"capacity": training, "capacity_eval": evaluating}
  return [
    f"note: without noise, {WHERE}.{key} = {getattr(moe, key)} drops tokens at the "
    f"start that {need:g} would not"
    for key, need in needs.items()
    if getattr(moe, key) < min(need, moe.experts / moe.k)
  ]


def _options(source: str) -> Mapping[str, Any]:
  """Returns `config.model.moe` of the run that made a sparse checkpoint."""
  folder = pathlib.Path(checkpoint.step_folder(source, "--from"))
  paths = [folder / "config.json", folder.parents[1] / "config.json"]
  for path in paths:
    if path.exists():
      return json.loads(path.read_text())["model"]["moe"]
  raise FileNotFoundError(
    f"--from {source}: no config.json at {paths[0]} or {paths[1]}, which would say the "
    f"{WHERE}.k of its sparse layers: what preserves their outputs depends on it"
  )


def _size(moe: MoeConfig) -> str:
  return f"{moe.experts} experts, k = {moe.k}"


def _count(leaves: Sequence[Any]) -> str:
  return f"{len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} parameters"


def _indices(text: str) -> tuple[int, ...]:
  return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
  with errors.shown(), errors.settings():
    main()
