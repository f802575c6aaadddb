"""Turns any source, or a recipe, into ArrayRecord shards: read at random fastest.

python -m tools.prepare_data --source webdataset --option paths="pairs/{split}-*.tar" \
  --split train --out prepared --verify
python train.py ... --config.data.source=arrayrecord \
  --config.data.options='{"paths": "prepared/{split}/data.array_record*"}'

python -m tools.prepare_data --recipe tuxpaint --root stamps --split all --out prepared

Writes prepared/train/: the shards, classes.json and manifest.json, which has counts,
SHA-256 of the shards, what was rejected and why, the command, and of a recipe
(input_pipeline/datasets, docs/datasets.md) the licence and whom to name. The folder
appears at once when all is there: of a run that is killed there is only train.part,
which nothing reads and the next run removes. In a bucket (gs://, s3://) the manifest
comes last, and what has none is not finished. With --verify and no source, checks such
a folder.
"""

import argparse
import ast
import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import shlex
import shutil
import sys
import tempfile
from typing import Any

from etils import epath
import numpy as np
import tqdm

from input_pipeline import records
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Source
from input_pipeline.sources import arrayrecord
from input_pipeline.transforms import decode_image
from model import catalogue

_MANIFEST = "manifest.json"
_SHARDS = "data.array_record"
_CHUNK = 2**22
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
  parser.add_argument("--recipe", help="a file of input_pipeline/datasets/, instead")
  parser.add_argument("--root", help="of a recipe: where its package was unpacked")
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
  except (ValueError, OSError, ImportError) as e:  # gcsfs or s3fs may be missing
    parser.exit(2, f"{e}\n")


def run(flags: argparse.Namespace, command: str) -> str:
  """Does what the flags ask for; returns what to print.

  Raises:
    FileExistsError: the split is there already.
    ValueError: a wrong flag, no example that can be used, or a folder that is not
      what its manifest says.
  """
  target = epath.Path(flags.out) / flags.split
  if flags.split in ("", "..") or "/" in flags.split:
    raise ValueError(f"--split {flags.split}: takes a plain name, of a folder in --out")
  if bool(flags.source) == bool(flags.recipe):
    if flags.source or not flags.verify:
      raise ValueError(
        "--source or --recipe names what to read; with --verify alone, --out is read"
      )
    return f"{target}: as its manifest says, {verify(target)} examples"
  # In a bucket nothing appears at once: there the manifest says that all is there.
  done = target / _MANIFEST if _is_remote(target) else target
  if done.exists():
    raise FileExistsError(f"{target} is there already: remove it, or use another --out")
  if flags.shards < 1:
    raise ValueError(f"--shards {flags.shards} is not at least 1")
  if flags.limit is not None and flags.limit < 1:
    raise ValueError(f"--limit {flags.limit} is not at least 1")
  source = _source(flags)
  with _part(target) as part:
    manifest = write(source, part, flags)
    manifest["command"] = command
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (part / _MANIFEST).write_text(text + "\n")
    if flags.verify:
      verify(part, _usable(source, flags, collections.defaultdict(list)))
  return _summary(target, manifest, flags.verify)


@contextlib.contextmanager
def _part(target: epath.Path) -> Iterator[epath.Path]:
  """Gives a local folder to write; moves or copies it to the target if all went well.

  ArrayRecord is written to local files alone.
  """
  if not _is_remote(target):
    part = target.parent / f"{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(target)
    return
  with tempfile.TemporaryDirectory() as folder:
    part = epath.Path(folder)
    yield part
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob(f"{_SHARDS}*"):  # of a run that was killed
      old.unlink()
    names = sorted((p.name for p in part.iterdir()), key=lambda n: (n == _MANIFEST, n))
    for name in tqdm.tqdm(names, "copy", unit=" files"):
      with (part / name).open("rb") as read, (target / name).open("wb") as written:
        shutil.copyfileobj(read, written)


def _is_remote(path: epath.Path) -> bool:
  return "://" in str(path)


def write(
  source: Source, folder: epath.Path, flags: argparse.Namespace
) -> dict[str, Any]:
  """Writes the shards and classes.json; returns the manifest.

  Raises:
    ValueError: no example can be used, or fewer than there are shards.
  """
  rejects: dict[str, list[int]] = collections.defaultdict(list)
  seen = len(source) if flags.limit is None else min(flags.limit, len(source))
  files = arrayrecord.write_records(
    str(folder / _SHARDS),
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
    **_origin(flags),
    options=_options(flags),
    split=flags.split,
    read=seen,
    examples=seen - rejected,
    rejected=rejected,
    rejects={
      reason: dict(count=len(at), first=at[:_EXAMPLES])
      for reason, at in sorted(rejects.items())
    },
    shards={epath.Path(f).name: _shard(epath.Path(f)) for f in files},
  )


def verify(folder: epath.Path, examples: Iterator[dict] | None = None) -> int:
  """Checks a folder against its manifest, and against the examples if given.

  In a bucket it reads the files and their SHA-256, not the records one by one.

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
  there = {p.name for p in folder.glob(f"{_SHARDS}*")}
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
  if _is_remote(folder):
    return manifest["examples"]
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
  """Returns the source, or that of the recipe, that the flags name."""
  name = flags.recipe or flags.source
  package = "datasets" if flags.recipe else "sources"
  cls = catalogue.find(f"input_pipeline.{package}", name, "Source")
  try:
    source = catalogue.build(cls, _options(flags) | {"split": flags.split}, "--option")
  except TypeError as e:
    raise ValueError(f"{name}: {e}; give it by --option") from e
  if not len(source):
    raise ValueError(f"split {flags.split!r} of {name!r} has no examples")
  return source


def _origin(flags: argparse.Namespace) -> dict[str, Any]:
  """Returns what the manifest says of where the examples come from."""
  if not flags.recipe:
    return dict(source=flags.source)
  about = catalogue.find("input_pipeline.datasets", flags.recipe, "RECIPE")
  return dict(recipe=flags.recipe, get=about.get, **dataclasses.asdict(about))


def _options(flags: argparse.Namespace) -> dict[str, Any]:
  options = dict(map(_option, flags.option))
  return options | ({"root": flags.root} if flags.root else {})


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
  name = f"{flags.recipe or flags.source} {flags.split}"
  for i in tqdm.tqdm(range(count), name, unit=" examples", disable=not bar):
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


def _shard(path: epath.Path) -> dict[str, Any]:
  digest, size = hashlib.sha256(), 0
  with path.open("rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
      size += len(chunk)
  return dict(bytes=size, sha256=digest.hexdigest())


def _order(manifest: Mapping[str, Any], count: int) -> Sequence[int]:
  """Returns where each example went: they were dealt to the shards in turn."""
  shards = len(manifest["shards"])
  starts = np.cumsum([0, *(len(range(s, count, shards)) for s in range(shards))])
  return [int(starts[i % shards]) + i // shards for i in range(count)]


def _same(got: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
  """Returns whether a record holds the example, byte by byte."""
  return records.encode(got) == records.encode(want)


def _summary(target: epath.Path, manifest: Mapping[str, Any], verified: bool) -> str:
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
