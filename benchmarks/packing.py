"""What packing saves on real texts, and what a train step takes packed and not.

python -m benchmarks.packing --root ROOT --out benchmarks/results/packing_cpu.json
python -m benchmarks.packing --table benchmarks/results/packing_cpu.json

ROOT holds what docs/datasets.md says of cldr_annotations and wordnet; the source emoji
needs requirements-demo.txt. Of each set, one wording of an example at random, as ids of
a tokenizer trained on them and an end, cut to the longest that the model takes. The
steps are a CLIP's with a small image tower, forward, backward and AdamW, in turns, on
batches of glosses of WordNet.
"""

import argparse
from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from benchmarks import device, turns
from configs import base
from input_pipeline import captions, packing, tokenizer
from input_pipeline.datasets import cldr_annotations, wordnet
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Source
from input_pipeline.sources import emoji

GROUP, EXAMPLES = 32, 4096
CUTS = (0.02, 0.002)  # greatest shares of tokens that packing may cut
HEAD = ("texts", "longest", "mean", "packed to", "bins", "cut", "slots in use", "saved")


class Set(NamedTuple):
  """Some texts.

  Attributes:
    source: of examples with captions.
    length: ids of the longest text that the model takes.
    vocab: ids of the tokenizer.
  """

  source: Source
  length: int
  vocab: int


def sets(root: str) -> dict[str, Set]:
  """Returns name -> texts that are real."""
  return {
    # As in the emoji recipes.
    "emoji names, English": Set(emoji.Source(languages=("en",)), 16, 1024),
    "names of symbols, 163 locales": Set(
      cldr_annotations.Source(root=root, split="all"), 32, 4096
    ),
    "WordNet's glosses": Set(wordnet.Source(root=root, split="all"), 64, 4096),
  }


def ids_of(texts: Set, seed: int = 0) -> np.ndarray:
  """Returns int32[n, length], n whole groups: ids, the end 2, and padding."""
  rng = np.random.default_rng(seed)
  chosen = []
  for i in rng.permutation(len(texts.source))[:EXAMPLES].tolist():
    try:
      found = list(captions.wordings(texts.source[i]))
    except Drop:
      continue
    if found:
      chosen.append(found[rng.integers(len(found))])
  chosen = chosen[: len(chosen) // GROUP * GROUP]
  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/tokenizer.model"
    tokenizer.train_tokenizer(chosen, path, texts.vocab)
    model = tokenizer.load(path, texts.vocab)
    ids = [model.encode(text) for text in chosen]
    return tokenizer.padded(ids, texts.length, end=model.end)


def packed_to(lengths: np.ndarray, length: int, tokens: int) -> dict[str, Any] | None:
  """Returns what packing into so many slots saves and cuts; None if it cannot be."""
  rows = next((r for r in (2, 4, 8, 16, 32) if r * tokens >= length), 0)
  if not rows:
    return None
  kept = packing.plan(lengths, tokens, rows, GROUP).kept
  return dict(
    tokens=tokens,
    rows=rows,
    cut=round(float(1 - kept.sum() / lengths.sum()), 5),
    filled=round(float(kept.sum() / (len(lengths) * tokens)), 4),
    saved=round(1 - tokens / length, 4),
  )


def savings(ids: np.ndarray) -> dict[str, Any]:
  """Returns the lengths of texts, and the fewest slots for each share of cut tokens."""
  length, lengths = ids.shape[1], (ids != 0).sum(axis=1)
  tried = [packed_to(lengths, length, n) for n in range(2, length)]
  possible = [row for row in tried if row]
  found = dict(
    examples=len(lengths),
    length=length,
    mean=round(float(lengths.mean()), 2),
    full=round(float((lengths == length).mean()), 4),
  )
  least = [next((r for r in possible if r["cut"] <= most), None) for most in CUTS]
  packed = [row for i, row in enumerate(least) if row and row not in least[:i]]
  return {**found, "packed": packed}


def config_of(args: argparse.Namespace, length: int) -> ConfigDict:
  """Returns the config of a step, not packed."""
  c = base.get_config()
  c.batch_size = args.batch
  c.model.trunk.update(dict(width=args.width, depth=args.depth, heads=2))
  c.model.trunk.mlp = 4 * args.width
  c.model.modalities.text = base.modality(stem="tokens", vocab=4096, length=length)
  c.model.modalities.image = base.modality(
    size=(32, 32, 3), patch=(16, 16), trunk=dict(width=64, depth=1, heads=1, mlp=64)
  )
  c.optimizer.update(dict(warmup=0, schedule="constant"))
  return c


def steps(
  args: argparse.Namespace, ids: np.ndarray, sizes: Sequence[Mapping[str, Any]]
) -> dict[str, device.Step]:
  """Returns the compiled steps: "unpacked", and "packed to <tokens>" of `sizes`."""
  arms, rng = {}, np.random.default_rng(0)
  image = rng.standard_normal((args.batch, 32, 32, 3), np.float32)
  text = ids[: args.batch]
  batch = {"image": image, "text": text, "text_mask": text != 0}
  for size in (None, *sizes):
    c = config_of(args, ids.shape[1])
    if size:
      pack = dict(tokens=size["tokens"], rows=size["rows"], group=GROUP)
      c.model.modalities.text.pack.update(pack)
    given = packing.packed(packing.packers(c), batch)
    name = f"packed to {size['tokens']}" if size else "unpacked"
    arms[name] = device.Step(c, given)
    print(f"{name}: {arms[name].facts}", flush=True)
  return arms


def measure(arms: Mapping[str, device.Step], rounds: int) -> dict[str, Any]:
  """Returns arm -> facts, what a step took, and its ratio to the unpacked one's.

  Without rounds, the facts alone.
  """
  if not rounds:
    return {name: step.facts for name, step in arms.items()}
  take = {name: functools.partial(turns.clocked, s, 1) for name, s in arms.items()}
  times = turns.interleave(take, rounds)
  return {
    name: {
      **step.facts,
      **turns.summary(times[name]),
      "over_unpacked": turns.ratios(times[name], times["unpacked"]),
      "loss": round(float(step.metrics["loss"]), 4),
    }
    for name, step in arms.items()
  }


def table(report: Mapping[str, Any]) -> str:
  """Returns the markdown tables of docs/mixtures.md: savings, then steps."""
  lines = [[*HEAD], ["---"] * len(HEAD)]
  for name, s in report["sets"].items():
    for p in s["packed"]:
      cells = (name, s["length"], s["mean"], p["tokens"], f"{p['rows']} rows")
      shares = (f"{p['cut']:.2%}", f"{p['filled']:.0%}", f"{p['saved']:.0%}")
      lines.append([*map(str, cells), *shares])
  more = ["step", "GFLOP an example", "XLA's count", "CPU time, ratio", "quartiles"]
  lines += [[], more, ["---"] * len(more)]
  for name, r in report["results"].items():
    counts = r["gflops_per_example"], r["xla_gflops_per_example"]
    took = ["not timed", ""]
    if "over_unpacked" in r:
      ratio = r["over_unpacked"]["cpu_seconds"]
      took = [f"{ratio['median']:.2f}", f"{ratio['q1']:.2f} to {ratio['q3']:.2f}"]
    lines.append([name, *(f"{x:.3f}" for x in counts), *took])
  return "\n".join(f"| {' | '.join(cells)} |" if cells else "" for cells in lines)


def arguments(argv: list[str] | None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.packing")
  parser.add_argument("--root", default="", help="where the packages are unpacked")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--table", help="JSON file to print instead")
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--depth", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=5, help="0: time nothing")
  parser.add_argument("--threads", type=int, default=1, help="cores to use; 0: all")
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to; or prints the table of one."""
  args = arguments(argv)
  if args.table:
    print(table(json.loads(pathlib.Path(args.table).read_text())))
    return
  turns.pin(args.threads)
  ids = {name: ids_of(texts) for name, texts in sets(args.root).items()}
  saved = {name: savings(rows) for name, rows in ids.items()}
  print(json.dumps(saved, indent=1), flush=True)
  last = list(ids)[-1]
  arms = steps(args, ids[last], saved[last]["packed"][-1:])
  report = dict(
    command=turns.command("benchmarks.packing", argv),
    **device.describe(),
    settings={k: v for k, v in vars(args).items() if k not in ("out", "table", "root")},
    sets=saved,
    results=measure(arms, args.rounds),
    load_average=turns.load(),
  )
  print(table(report))
  turns.write(args.out, report)


if __name__ == "__main__":
  main()
