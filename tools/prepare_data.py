"""Turns any source into ArrayRecord shards, which are read at random fastest.

python -m tools.prepare_data --source webdataset --option paths="pairs/{split}-*.tar" \
  --split train --out prepared --verify
python train.py ... --config.data.source=arrayrecord \
  --config.data.options='{"paths": "prepared/{split}/data.array_record*"}'

Writes prepared/train/: the shards, classes.json and manifest.json, which has counts,
SHA-256 of the shards, what was rejected and why, and the command. The folder appears at
once when all is there: of a run that is killed there is only train.part, which nothing
reads and the next run removes. With --verify and no --source, checks such a folder.
"""

import argparse
import ast
import collections
from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import pathlib
import shlex
import shutil
import sys
from typing import Any

import numpy as np
import tqdm

from input_pipeline import records
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Source
from input_pipeline.sources import arrayrecord
from input_pipeline.transforms import decode_image
from model import catalogue

_MANIFEST = "manifest.json"
_EXAMPLES = 10  # of each reason, that the manifest names
_DECODER = decode_image.Transform()


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, writes the folder and prints what is in it."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.prepare_data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--source", help="a file of input_pipeline/sources/")
  parser.add_argument(
    "--option",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="of the source; a Python literal, else text; may be repeated",
  )
  parser.add_argument("--split", default="train", help="of the source")
  parser.add_argument("--out", required=True, help="folder; the split is one in it")
  parser.add_argument("--shards", type=int, default=8, help="files")
  parser.add_argument("--limit", type=int, help="examples, the first ones")
  parser.add_argument(
    "--decode", action="store_true", help="rejects images that cannot be decoded, too"
  )
  parser.add_argument(
    "--verify", action="store_true", help="reads all back, and compares"
  )
  flags = parser.parse_args(argv)
  command = shlex.join(argv if argv is not None else sys.argv[1:])
  try:
    print(run(flags, f"python -m tools.prepare_data {command}"))
  except (ValueError, OSError, ModuleNotFoundError) as e:
    parser.exit(2, f"{e}\n")


def run(flags: argparse.Namespace, command: str) -> str:
  """Does what the flags ask for; returns what to print.

  Raises:
    FileExistsError: the split is there already.
    ValueError: a wrong flag, no example that can be used, or a folder that is not
      what its manifest says.
  """
  target = pathlib.Path(flags.out) / flags.split
  if "://" in flags.out or flags.split in ("", "..") or "/" in flags.split:
    raise ValueError(
      f"--out {flags.out} --split {flags.split}: takes a local folder, and a plain "
      "name in it; copy the result to a bucket afterwards"
    )
  if not flags.source:
    if not flags.verify:
      raise ValueError(
        "--source names what to read; with --verify alone, --out is read"
      )
    return f"{target}: as its manifest says, {verify(target)} examples"
  if target.exists():
    raise FileExistsError(f"{target} is there already: remove it, or use another --out")
  if flags.shards < 1:
    raise ValueError(f"--shards {flags.shards} is not at least 1")
  source = _source(flags)
  part = target.with_name(f"{target.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  manifest = write(source, part, flags)
  manifest["command"] = command
  text = json.dumps(manifest, indent=1, ensure_ascii=False)
  (part / _MANIFEST).write_text(text + "\n")
  if flags.verify:
    verify(part, _usable(source, flags, collections.defaultdict(list)))
  part.rename(target)
  return _summary(target, manifest, flags.verify)


def write(
  source: Source, folder: pathlib.Path, flags: argparse.Namespace
) -> dict[str, Any]:
  """Writes the shards and classes.json; returns the manifest.

  Raises:
    ValueError: no example can be used, or fewer than there are shards.
  """
  rejects: dict[str, list[int]] = collections.defaultdict(list)
  seen = len(source) if flags.limit is None else min(flags.limit, len(source))
  files = arrayrecord.write_records(
    str(folder / "data.array_record"),
    _usable(source, flags, rejects, bar=True),
    shards=flags.shards,
    classes=source.classes or None,
  )
  rejected = sum(map(len, rejects.values()))
  if seen - rejected < flags.shards:
    counts = {reason: len(at) for reason, at in rejects.items()}
    raise ValueError(
      f"{seen} examples, {rejected} rejected ({counts or 'none'}): too few for "
      f"--shards {flags.shards}"
    )
  return dict(
    source=flags.source,
    options=dict(map(_option, flags.option)),
    split=flags.split,
    read=seen,
    examples=seen - rejected,
    rejected=rejected,
    rejects={
      reason: dict(count=len(at), first=at[:_EXAMPLES])
      for reason, at in sorted(rejects.items())
    },
    shards={pathlib.Path(f).name: _shard(pathlib.Path(f)) for f in files},
  )


def verify(folder: pathlib.Path, examples: Iterator[dict] | None = None) -> int:
  """Checks a folder against its manifest, and against the examples if given.

  Returns:
    The examples in it.

  Raises:
    ValueError: a shard that is missing, changed or added, a record that cannot be
      read, or one that differs from its example.
    FileNotFoundError: no manifest: whatever wrote the folder did not get to its end.
  """
  path = folder / _MANIFEST
  if not path.exists():
    raise FileNotFoundError(f"no {path}: not written by tools.prepare_data to its end")
  manifest = json.loads(path.read_text())
  there = {p.name for p in folder.glob("data.array_record*")}
  if there != set(manifest["shards"]):
    odd = sorted(there ^ set(manifest["shards"]))
    raise ValueError(
      f"{folder}: shards that are missing, or not of the manifest: {odd}"
    )
  for name, shard in manifest["shards"].items():
    if _shard(folder / name) != shard:
      raise ValueError(
        f"{folder / name} is not the file of {path}: its SHA-256 differs"
      )
  written = arrayrecord.Source(paths=tuple(str(folder / n) for n in sorted(there)))
  if len(written) != manifest["examples"]:
    raise ValueError(f"{folder}: {len(written)} records, not {manifest['examples']}")
  for i, at in enumerate(tqdm.tqdm(_order(manifest, len(written)), "verify")):
    try:
      got = written[at]
    except Drop as e:
      raise ValueError(f"{folder}: record {at}: {e.reason}") from e
    if examples is not None and not _same(got, next(examples)):
      raise ValueError(f"{folder}: record {at} differs from example {i} of the source")
  return len(written)


def _source(flags: argparse.Namespace) -> Source:
  """Returns the source that the flags name."""
  cls = catalogue.find("input_pipeline.sources", flags.source, "Source")
  options = dict(map(_option, flags.option)) | {"split": flags.split}
  try:
    source = catalogue.build(cls, options, "--option")
  except TypeError as e:
    raise ValueError(f"--source {flags.source}: {e}; give it by --option") from e
  if not len(source):
    raise ValueError(f"split {flags.split!r} of {flags.source!r} has no examples")
  return source


def _option(text: str) -> tuple[str, Any]:
  """Returns "key=value" as a pair; what is no Python literal is text."""
  key, equals, value = text.partition("=")
  if not equals:
    raise ValueError(f"--option {text!r} is not KEY=VALUE")
  try:
    return key, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return key, value


def _usable(
  source: Source,
  flags: argparse.Namespace,
  rejects: dict[str, list[int]],
  *,
  bar: bool = False,
) -> Iterator[dict[str, Any]]:
  """Yields the examples that can be read and written, and notes why others cannot."""
  count = len(source) if flags.limit is None else min(flags.limit, len(source))
  for i in tqdm.tqdm(range(count), flags.split, unit=" examples", disable=not bar):
    try:
      example = dict(source[i])
      if flags.decode:
        _DECODER(example, np.random.default_rng(0))
      records.encode(example)
    except Drop as e:
      rejects[e.reason].append(i)
    except UnicodeEncodeError:  # halves of characters, which JSON can hold
      rejects["text is not UTF-8"].append(i)
    else:
      yield example


def _shard(path: pathlib.Path) -> dict[str, Any]:
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return dict(bytes=path.stat().st_size, sha256=digest)


def _order(manifest: Mapping[str, Any], count: int) -> Sequence[int]:
  """Returns where each example went: they were dealt to the shards in turn."""
  shards = len(manifest["shards"])
  starts = np.cumsum([0, *(len(range(s, count, shards)) for s in range(shards))])
  return [int(starts[i % shards]) + i // shards for i in range(count)]


def _same(got: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
  """Returns whether a record holds the example, byte by byte."""
  return records.encode(got) == records.encode(want)


def _summary(target: pathlib.Path, manifest: Mapping[str, Any], verified: bool) -> str:
  reasons = [f"  {r}: {v['count']}" for r, v in manifest["rejects"].items()]
  size = sum(shard["bytes"] for shard in manifest["shards"].values())
  first = (
    f"{target}: {manifest['examples']} of {manifest['read']} examples in "
    f"{len(manifest['shards'])} shards, {size / 2**20:.1f} MiB"
    f"{', read back and equal' if verified else ''}; {manifest['rejected']} rejected"
  )
  return "\n".join([first, *reasons])


if __name__ == "__main__":
  main()
