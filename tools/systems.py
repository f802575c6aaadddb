"""Writes docs/systems: the index of the methods and their taxonomy.

python -m tools.systems            # docs/systems/README.md and taxonomy.md
python -m tools.systems --check    # writes nothing; says which of them is old

From METHOD of each recipe in configs/methods/ and from the JSON of the claims in
docs/results/claims/, and from nothing else: a row says "held" only if a JSON does.
docs/systems/wave1.json lists the papers that are to be built first.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import importlib
import json
import pathlib
import re
import sys
from typing import Any

from benchmarks.claims.shared import verdict
from model import catalogue

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "configs.methods"
NO_CLAIM = "no claim yet"
WORDS = 6  # most words of a value
# Rows of wave 1 that are no method: what they ask for is the page of the taxonomy.
SURVEYS = ("crl_survey", "contrastive_ssl_survey")

# axis -> value -> what it means. Those that METHOD may take, whatever their case.
AXES: Mapping[str, Mapping[str, str]] = {
  "negatives": {
    "batch": "the other rows of the batch, each alike",
    "filtered batch": "the other rows, less those known or guessed to be positives",
    "weighted batch": "the other rows, the nearer ones for more",
    "hard batch": "those rows of the batch that a rule picks by their distance",
    "queue": "keys of earlier batches, first in, first out",
    "bank": "one stored key for every example of the data",
    "none": "there are none: something else keeps the embedding from collapsing",
  },
  "family": {
    "softmax": "InfoNCE and its kin: the positive's share of a sum of exponentials",
    "sigmoid": "each pair is judged by itself: does it match or not",
    "nce": "the true pair is told from samples of a noise distribution",
    "energy": "distances themselves: positives are pulled, negatives pushed",
    "uniformity": "the logarithm of a mean kernel of all pairs, without a softmax",
    "decorrelation": "statistics of the dimensions over the batch",
    "classification": "labels, or words as labels, are predicted",
  },
  "positives": {
    "pairs": "the modalities of one example, two at a time",
    "tuples": "the modalities of one example, three or more at a time",
    "views": "augmentations of one example in one modality",
    "bags": "several candidates of one example, of which some match",
    "labels": "examples of one class, group or attribute",
    "graded pairs": "pairs that come with a grade of relevance",
    "neighbours": "examples that an embedding finds alike, by degrees",
    "mixtures": "an example mixed with another, a positive of both by its shares",
  },
  "update": {
    "end-to-end": "queries and keys come from encoders that the gradient trains",
    "momentum": "keys come from a moving average of the encoder",
    "bank": "keys are embeddings stored in earlier epochs",
    "frozen": "keys, or what guides them, come from an encoder that is not trained",
  },
  "similarity": {
    "cosine": "the inner product of unit vectors",
    "gated cosine": "the same, in dimensions that a learned gate lets through",
    "product": "the multilinear product of more than two vectors",
    "late interaction": "each token finds its best match on the other side",
    "distance": "a function of the Euclidean distance",
    "probability": "the chance that two distributions match",
    "correlation": "of dimensions over the batch, not of examples",
    "logits": "the inner product with the weights of a class",
  },
}
HEADINGS = {
  "negatives": "Where negatives come from",
  "family": "Loss family",
  "positives": "What makes a positive",
  "update": "How the encoders are updated",
  "similarity": "Similarity",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """METHOD of configs/methods/<key>.py; the last five values are of AXES.

  Attributes:
    key: of the recipe, the claim and wave1.json.
    title: of the paper.
    paper: "arXiv 2110.06848", or an address.
    files: what computes it, losses and objectives first; paths from the root.
    tests: of these files.
    query: what is compared, in a few words.
    key_side: METHOD's "key": what it is compared with, in a few words.
    positives: what makes a positive.
    similarity: of query and key.
    family: of the loss.
    negatives: where they come from.
    update: of the encoders.
  """

  key: str
  title: str
  paper: str
  files: tuple[str, ...]
  tests: tuple[str, ...]
  query: str
  key_side: str
  positives: str
  similarity: str
  family: str
  negatives: str
  update: str


def methods() -> tuple[Method, ...]:
  """Returns all methods, by title.

  Raises:
    ValueError: a recipe whose METHOD is not complete or says what is unknown.
  """
  found = []
  for key in catalogue.names(PACKAGE):
    module = importlib.import_module(f"{PACKAGE}.{key}")
    found.append(method(key, getattr(module, "METHOD", {})))
  return tuple(sorted(found, key=lambda m: m.title.casefold()))


def method(key: str, given: Mapping[str, Any], root: pathlib.Path = ROOT) -> Method:
  """Returns METHOD of a recipe, checked.

  Raises:
    ValueError: keys that are missing or unknown, a value that AXES does not have or
      that is too long, a file that is not there; all complaints at once.
  """
  where = f"configs/methods/{key}.py: METHOD"
  asked = {f.name for f in dataclasses.fields(Method)} - {"key_side"}
  if given.keys() != asked:
    raise ValueError(
      f"{where} lacks {sorted(asked - given.keys())} and has besides "
      f"{sorted(given.keys() - asked)}"
    )
  values = {**given, "key": key, "key_side": given["key"]}
  wrong = []
  for axis, known in AXES.items():
    values[axis] = str(given[axis]).strip().casefold()
    if values[axis] not in known:
      hint = catalogue.near_misses(values[axis], list(known))
      wrong.append(f"{where}: {axis} = {given[axis]!r} is unknown; {hint}")
  for name in ("query", "key", *AXES):
    if not 0 < len(str(given[name]).split()) <= WORDS:
      wrong.append(f"{where}: {name} = {given[name]!r} is not of 1 to {WORDS} words")
  if not re.fullmatch(r"arXiv \d{4}\.\d{4,5}|https://\S+", given["paper"]):
    wrong.append(f"{where}: paper = {given['paper']!r} is no 'arXiv 1234.56789'")
  for name in ("files", "tests"):
    paths = given[name]
    if isinstance(paths, str) or not paths:
      wrong.append(f"{where}: {name} = {paths!r} must be a tuple of paths")
    else:
      wrong += [f"{where}: no file {p}" for p in paths if not (root / p).is_file()]
  if wrong:
    raise ValueError("\n".join(wrong))
  return Method(**values)


def found(result: Mapping[str, Any] | None) -> str:
  """Returns "held 1 of 8, inconclusive 7 of 8" of a claim's JSON, or NO_CLAIM."""
  if result is None:
    return NO_CLAIM
  verdicts = [s["verdict"] for s in result["statements"]]
  kinds = (verdict.HELD, verdict.NOT_HELD, verdict.OPEN)
  counts = [(kind, verdicts.count(kind)) for kind in kinds]
  return ", ".join(f"{kind} {n} of {len(verdicts)}" for kind, n in counts if n)


def index(
  known: Sequence[Method], docs: pathlib.Path, wave: Iterable[Mapping[str, str]]
) -> str:
  """Returns the text of docs/systems/README.md.

  Args:
    known: the methods.
    docs: the folder of claims, figures and results.
    wave: {"key", "title", "paper"} of each paper to build first.
  """
  head = ["method", "paper", "code", "test", "claim", "verdict", "figures"]
  keys = [m.key for m in known]
  rows = [_method_row(m, keys, docs) for m in known]
  built = {m.key for m in known} | set(SURVEYS)
  claims = sum(NO_CLAIM not in row for row in rows)
  parts = [
    "# Methods",
    f"{len(known)} recipes, {claims} of them with a claim of their paper in miniature. "
    "A method's name leads to its recipe: the command to run it, and how it differs "
    "from the paper. Written by `python -m tools.systems`; do not edit. "
    "[The same by what they have in common](taxonomy.md).",
    _table(head, rows),
    "A verdict counts the statements of the claim's page: held, not held, or "
    "inconclusive over its seeds.",
    "## Not built yet",
    "\n".join(
      f"- {row['title']}{_after(row['paper'])}"
      for row in sorted(wave, key=lambda r: r["title"].casefold())
      if row["key"] not in built
    )
    or "Nothing of the first wave.",
  ]
  return "\n\n".join(parts) + "\n"


def taxonomy(known: Sequence[Method], surveys: Iterable[Mapping[str, str]]) -> str:
  """Returns the text of docs/systems/taxonomy.md.

  Args:
    known: the methods.
    surveys: {"title", "paper"} of those whose axes these are.
  """
  sources = " and ".join(f"{s['title']}{_after(s['paper'])}" for s in surveys)
  parts = [
    "# What the methods have in common",
    f"The axes are those of two surveys, {sources}, in the words of this page. Each "
    "recipe says where it stands: METHOD in its file. Written by `python -m "
    "tools.systems`; do not edit. [The index of the methods](README.md).",
  ]
  for axis, values in AXES.items():
    rows = [
      [value, meaning, _links(m for m in known if getattr(m, axis) == value)]
      for value, meaning in values.items()
    ]
    parts += [f"## {HEADINGS[axis]}", _table([axis, "what it means", "methods"], rows)]
  head = ["method", "query", "key", *AXES]
  rows = [
    [_link(m), m.query, m.key_side, *(getattr(m, axis) for axis in AXES)]
    for m in sorted(known, key=lambda m: m.key)
  ]
  parts += ["## All of it", _table(head, rows)]
  return "\n\n".join(parts) + "\n"


def claims_of(key: str, keys: Iterable[str], docs: pathlib.Path) -> list[str]:
  """Returns the claims of a method: KEY, and KEY_MORE if no method has that name.

  Args:
    key: of the method.
    keys: of all methods.
    docs: the folder of claims, figures and results.
  """
  there = sorted(p.stem for p in (docs / "results" / "claims").glob(f"{key}*.json"))
  others = set(keys) - {key}
  return [c for c in there if c == key or (c.startswith(f"{key}_") and c not in others)]


def _method_row(m: Method, keys: Iterable[str], docs: pathlib.Path) -> list[str]:
  claims = claims_of(m.key, keys, docs)
  results = [
    json.loads((docs / "results" / "claims" / f"{c}.json").read_text()) for c in claims
  ]
  shown = [(c, f"../figures/claims/{c}.png") for c in claims]
  parts = [
    [f"[{r['title']}](../claims/{c}.md)" for c, r in zip(claims, results, strict=True)],
    [found(result) for result in results] or [found(None)],
    [f'[<img src="{p}" width="96" alt="figures of {c}">]({p})' for c, p in shown],
  ]
  return [
    f"[{m.title}](../../configs/methods/{m.key}.py)",
    _paper(m.paper),
    _files(m.files),
    _files(m.tests),
    *("<br>".join(part) or "-" for part in parts),
  ]


def _files(paths: Sequence[str]) -> str:
  return ", ".join(f"[{pathlib.Path(p).stem}](../../{p})" for p in paths)


def _link(m: Method) -> str:
  return f"[{m.key}](../../configs/methods/{m.key}.py)"


def _links(some: Iterable[Method]) -> str:
  return ", ".join(map(_link, sorted(some, key=lambda m: m.key))) or "-"


def _paper(paper: str) -> str:
  number = paper.removeprefix("arXiv ")
  return f"[{number}](https://arxiv.org/abs/{number})" if number != paper else paper


def _after(paper: str) -> str:
  return f" ({_paper(paper)})" if paper else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def pages(docs: pathlib.Path = ROOT / "docs") -> dict[pathlib.Path, str]:
  """Returns path -> text of both pages.

  Raises:
    ValueError: see `methods`.
  """
  folder = docs / "systems"
  wave = json.loads((folder / "wave1.json").read_text())
  known = methods()
  surveys = [row for row in wave if row["key"] in SURVEYS]
  return {
    folder / "README.md": index(known, docs, wave),
    folder / "taxonomy.md": taxonomy(known, surveys),
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog="python -m tools.systems")
  parser.add_argument("--check", action="store_true", help="write nothing")
  args = parser.parse_args(argv)
  try:
    made = pages()
  except ValueError as e:
    print(f"systems: {e}", file=sys.stderr)
    return 1
  old = [p for p, text in made.items() if not p.exists() or p.read_text() != text]
  if args.check:
    for path in old:
      print(f"{path} is old: run python -m tools.systems", file=sys.stderr)
    return int(bool(old))
  for path in old:
    path.write_text(made[path])
    print(path)
  return 0


if __name__ == "__main__":
  sys.exit(main())
