"""Images a second and core: our loader, a PyTorch DataLoader, plain webdataset.

pip install -r requirements-bench.txt
python -m benchmarks.input --out benchmarks/results/input_cpu.json

Decode, random-resized-crop to 224, flip, normalise, tokenize and batch, of the same
JPEGs and captions (benchmarks/photos.py). Groups of contenders take turns, each a
process of its own (see `turns`). Images per second and core are images over the CPU
time that its processes had, so that others who use the machine do not count; the clock
is reported beside it. Without the peers' packages only ours are timed.
"""

import argparse
from collections.abc import Mapping
import functools
import importlib.util
import json
import os
import pathlib
import tempfile
from typing import Any

from benchmarks import photos, turns
from training import environment

OURS, TORCH = "ours", "torch"
PEERS = (TORCH, "torch_v2", "webdataset")
MEASURES = (
  "arrays from JPEGs",
  "box before decoding",
  "vector resampling",
  "bytes to the device",
  "flip by channels",
)
BOX = MEASURES[1]
SIZES = dict(size=224, vocab=300, length=32, batch=64, scale=(0.5, 1.0))
Contender = Mapping[str, Any]


def ours(threads: int = 0, workers: int = 0, **more: Any) -> Contender:
  """Returns the settings of our loader."""
  given = dict(
    source="arrayrecord", without=(), loader_threads=threads, workers=workers
  )
  # What may be ready when a turn begins: two batches, and with processes two more of
  # their own and what is between.
  warm = 8 if workers else 3 if threads else 0
  return dict(module="input_ours", warm=warm) | given | more


def peer(name: str, workers: int = 0) -> Contender:
  """Returns the settings of a peer."""
  # Two batches are ahead of each worker.
  return dict(module="input_torch", peer=name, workers=workers, warm=2 * workers)


def groups() -> dict[str, dict[str, Contender]]:
  """Returns group -> contender -> settings; the first of a group is ours."""
  alone = {name: peer(name) for name in PEERS}
  tar, files = ours(source="webdataset"), ours(source="jsonl")
  one = {name: peer(name, 1) for name in PEERS}
  two = {name: peer(name, 2) for name in PEERS}
  taken = {f"without {m}": ours(without=(m,)) for m in MEASURES}
  taken["without any"] = ours(without=MEASURES)
  large = dict(ours=ours(), **{f"without {BOX}": ours(without=(BOX,))})
  return {
    "in the main process": dict(ours=ours(), ours_tar=tar, ours_files=files, **alone),
    "one worker": dict(ours=ours(1), ours_process=ours(1, 1), **one),
    "two workers": dict(ours=ours(2), ours_processes=ours(2, 2), **two),
    "each measure": dict(ours=ours(), **taken),
    "larger pictures": dict(**large, torch=peer(TORCH)),
  }


def measure(
  contenders: Mapping[str, Contender], shared: Contender, rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
  """Returns name -> what a contender says of itself, and what an image took."""
  workers: dict[str, turns.Worker] = {}
  try:
    for name, settings in contenders.items():
      module = f"benchmarks.contenders.{settings['module']}"
      workers[name] = turns.Worker(module, {**shared, **settings})
    take = {name: functools.partial(w.turn, steps) for name, w in workers.items()}
    times = turns.interleave(take, rounds)
    return {name: _row(worker, times, name, shared) for name, worker in workers.items()}
  finally:
    for worker in workers.values():
      worker.kill()


def _row(
  worker: turns.Worker,
  times: Mapping[str, list[turns.Seconds]],
  name: str,
  shared: Contender,
) -> dict[str, Any]:
  each = [turns.Seconds(*(s / shared["batch"] for s in t)) for t in times[name]]
  scale = 1e6  # microseconds: their digits survive the rounding
  took = turns.summary([turns.Seconds(*(s * scale for s in t)) for t in each])
  row = dict(
    worker.facts,
    microseconds=took["seconds"],
    cpu_microseconds=took["cpu_seconds"],
    images_per_second=round(scale / took["seconds"]["median"], 1),
    images_per_second_per_core=round(scale / took["cpu_seconds"]["median"], 1),
  )
  base = TORCH if TORCH in times else OURS
  if name != base:
    row[f"times_{base}"] = turns.ratios(times[base], times[name])
  return row | worker.close()  # not killed: it has workers of its own to end


def demo(workdir: str) -> dict[str, Any]:
  """Returns how long a run waited for its data: the spread over its log's lines."""
  folder = pathlib.Path(workdir)
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  waits = [line["data_wait"] for line in lines if "data_wait" in line]
  about = json.loads((folder / "environment.json").read_text())
  config = json.loads((folder / "config.json").read_text())
  return about | dict(
    steps=config["total_steps"],
    batch=config["batch_size"],
    data_wait=turns.spread(waits),
    mean_data_wait=round(sum(waits) / len(waits), 5),
  )


def arguments(argv: list[str] | None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.input")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--groups", nargs="*", choices=groups(), default=[*groups()])
  parser.add_argument("--only", nargs="*", help="of the contenders")
  parser.add_argument("--examples", type=int, default=256)
  parser.add_argument("--side", type=int, default=500, help="of the pictures, longer")
  parser.add_argument("--large", type=int, default=1000, help="of the larger pictures")
  parser.add_argument("--quality", type=int, default=90)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=4, help="batches of one turn")
  parser.add_argument("--demo", help="workdir of a run whose waiting is reported too")
  for key, value in SIZES.items():
    many = dict(nargs=2, type=float) if isinstance(value, tuple) else dict(type=int)
    parser.add_argument(f"--{key}", default=value, **many)
  return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> dict[str, dict[str, Contender]]:
  """Returns the groups that were asked for, without peers that are not installed."""
  missing = [p for p in ("torch", "torchvision", "webdataset") if not _installed(p)]
  if missing:
    print(f"{missing} are not installed (requirements-bench.txt): timing only ours")
  found = {}
  for group in args.groups:
    found[group] = {
      name: settings
      for name, settings in groups()[group].items()
      if (not args.only or name in args.only)
      and not (missing and settings["module"] == "input_torch")
    }
  return found


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to."""
  args = arguments(argv)
  # As `make demo`: large pages for the large buffers of all. The workers inherit it.
  os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  shared = {key: getattr(args, key) for key in SIZES} | dict(threads=0)
  report: dict[str, Any] = dict(
    command=environment.without_folders(turns.command("benchmarks.input", argv)),
    device=turns.processor(),
    cores=turns.cores(),
    settings={key: getattr(args, key) for key in SIZES},
    rounds=args.rounds,
    batches_per_turn=args.steps,
    malloc=os.environ["GLIBC_TUNABLES"],
    load_average=dict(before=turns.load()),
    data={},
    results={},
  )
  if args.demo:
    report["demo"] = demo(args.demo)
  with tempfile.TemporaryDirectory() as root:
    for group, contenders in chosen(args).items():
      side = args.large if group == "larger pictures" else args.side
      folder = pathlib.Path(root) / str(side)
      if not folder.exists():
        folder.mkdir()
        made = photos.write(folder, args.examples, side, args.quality, args.vocab)
        report["data"][str(side)] = made
        print(f"made {made}", flush=True)
      print(f"{group}:", flush=True)
      given = shared | dict(folder=str(folder))
      found = measure(contenders, given, args.rounds, args.steps)
      for name, row in found.items():
        print(line(name, row), flush=True)
      report["results"][group] = dict(side=side, rows=found)
      report["load_average"]["after"] = turns.load()
      turns.write(args.out, report)  # as far as it is: the whole takes a while


def line(name: str, row: Mapping[str, Any]) -> str:
  """Returns a row for the terminal."""
  cpu = row["cpu_microseconds"]
  times = [v for k, v in row.items() if k.startswith("times_")]
  more = f", {times[0]['cpu_seconds']['median']:.2f} times the base's" if times else ""
  return (
    f"  {name:28} {row['images_per_second_per_core']:7.1f} images/s/core (CPU "
    f"{cpu['median']:.0f} us, quartiles {cpu['q1']:.0f} to {cpu['q3']:.0f}; by the "
    f"clock {row['images_per_second']:.1f} images/s){more}"
  )


if __name__ == "__main__":
  main()
