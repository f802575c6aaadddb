import base64
import html.parser
import json
import re

import numpy as np
import pytest

from tests.tools import synthetic
from tools import report, report_data, report_pictures, report_plots

FLOOR = {f"{w}_r{k}": 0.01 * k for w in ("i2t", "t2i") for k in (1, 5, 10)}
FLOOR |= {"probe_group": 0.58, "n": 24, "title": "ridge on 24x24 pixels"}
FLOOR |= {"without_flag/i2t_r1": 0.99, "without_flag/i2t_r5": 0.001}
FLOORS = {"retrieval": FLOOR}


class Page(html.parser.HTMLParser):
  """Collects what a page shows, and whether its tags are balanced."""

  def __init__(self, text):
    super().__init__()
    self.open, self.images, self.words, self.external = [], [], [], []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag == "img":
      self.images.append(attrs)
    if tag in ("script", "link") or str(attrs.get("src", "data:")).startswith("http"):
      self.external.append(tag)
    if tag not in ("img", "meta", "link", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self):
    return " ".join(" ".join(self.words).split())


@pytest.fixture(autouse=True)
def known_facts(monkeypatch):
  monkeypatch.setattr(
    report_data, "parameters", lambda run: {"total": 2_000_000, "active": 1_500_000}
  )
  monkeypatch.setattr(report_data, "open_source", lambda *_: synthetic.Source())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = synthetic.write(tmp_path_factory.mktemp("run") / "work")
  (folder / "artifacts" / "floors.json").write_text(json.dumps(FLOORS))
  return folder


@pytest.fixture
def no_figures(monkeypatch):
  """Draws nothing: for tests about the words."""
  for module in (report.plots, report.routing):
    for name in ("losses", "retrieval", "throughput", "per_class", "final",
                 "over_time", "experts_over_time", "router_over_time"):  # fmt: skip
      if hasattr(module, name):
        monkeypatch.setattr(module, name, lambda *a, **k: None)
  monkeypatch.setattr(report.pictures, "grids", lambda *a: {})
  monkeypatch.setattr(report.experts, "patches", lambda run: ())


@pytest.fixture(scope="module")
def built(workdir):
  other = {
    "title": "A longer run",
    "metrics": {
      "eval/retrieval/i2t_r10": {"mean": 0.321, "std": 0.012},
      "eval/retrieval/t2i_r10": [0.3, 0.4],
      "eval/retrieval/n": 24,
    },
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report_data, "parameters", lambda run: {"total": 10**6, "active": 5})
    patch.setitem(report_plots.STYLE, "figure.dpi", 40)
    patch.setattr(report_data, "open_source", lambda *_: synthetic.Source())
    path, text = report.build(str(workdir), [other])
  return path, text, Page(path.read_text())


def test_the_page_is_self_contained_and_accessible(built):
  path, _, page = built
  assert page.external == []
  assert len(page.images) == 12
  for image in page.images:
    assert image["alt"]
    head, data = image["src"].split(",", 1)
    assert head == "data:image/png;base64"
    assert base64.b64decode(data)[:4] == b"\x89PNG"
  names = {p.stem for p in path.parent.glob("*.png")}
  assert names == {
    "losses", "retrieval", "zero_shot_group", "routing", "routing_over_time", "experts",
    "router", "likes_layer01_image", "likes_layer03_image",
    "throughput", "neighbours_retrieval_i2t", "neighbours_retrieval_t2i",
  }  # fmt: skip


def test_the_page_says_what_was_measured(built):
  _, _, page = built
  for words in (
    "limoe_synthetic", "Step 200", "1.00 M, 0.00 M active", "jax ",
    "Retrieval, test split", "This run, without flag", "Floor: chance",
    "Floor: ridge on 24x24 pixels",
    "A longer run", "0.321 ± 0.012", "0.350 ± 0.071", "retrieval train (train split)",
    "linear probe of the pixels", "Alignment, image and text", "Uniformity, image",
    "Layer 3: text that reaches each expert", "#400 1.5x", "expert 3 #309 10.5x - -",
  ):  # fmt: skip
    assert words in page.text, words
  assert "Not measured" not in page.text


def test_the_table_marks_what_beats_its_floor(workdir):
  run = report_data.read(workdir)
  head, rows = report.retrieval_rows(run, {"retrieval": FLOOR | {"i2t_r1": 0.99}}, [])
  assert head[1:4] == ["i2t R@1", "i2t R@5", "i2t R@10"]
  assert rows[0].won == {1, 2, 3, 4, 5}
  assert rows[0].cells[2] == f"{run.last('eval/retrieval/i2t_r10'):.3f}"
  assert rows[0].cells[-1] == "24"
  assert rows[1].won == {1}
  by_name = {r.name: r for r in rows}
  assert by_name["Floor: chance"].cells[2] == f"{10 / 24:.3f}"
  assert by_name["Floor: ridge on 24x24 pixels"].cells[0] == "0.990"
  assert by_name["Floor: ridge on 24x24 pixels, without flag"].cells[1] == "0.001"


def test_text_of_the_terminal(built):
  _, text, _ = built
  lines = text.splitlines()
  assert lines[0].startswith("Retrieval")
  assert len({len(line) for line in lines[:4]}) == 1
  assert "This run" in lines[2]


@pytest.mark.parametrize("keep", ["config.json", "metrics.jsonl"])
def test_missing_pieces_are_not_measured(tmp_path, keep, monkeypatch):
  monkeypatch.setitem(report_plots.STYLE, "figure.dpi", 40)
  whole = synthetic.write(tmp_path / "whole")
  part = tmp_path / "part"
  part.mkdir()
  (part / keep).write_text((whole / keep).read_text())
  path, _ = report.build(str(part))
  page = Page(path.read_text())
  assert "Not measured" in page.text
  assert bool(page.images) == (keep == "metrics.jsonl")


def test_a_run_killed_early(tmp_path, monkeypatch):
  monkeypatch.setitem(report_plots.STYLE, "figure.dpi", 40)
  whole = synthetic.write(tmp_path)
  text = (whole / "metrics.jsonl").read_text()
  first = text.splitlines()[0]
  (whole / "metrics.jsonl").write_text(first + '\n{"step": 4, "lo')
  run = report_data.read(whole)
  assert [r["step"] for r in run.rows] == [2]
  report.build(str(whole))


def test_a_step_written_twice_counts_once(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 2, "loss": 9.0}\n{"step": 4, "loss": 8.0}\n{"step": 2, "loss": 7.0}\n'
  )
  steps, values = report_data.read(tmp_path).series("loss")
  assert (steps.tolist(), values.tolist()) == ([2, 4], [7.0, 8.0])


def test_nothing_there_is_an_error(tmp_path, capsys):
  assert report.main([str(tmp_path)]) == 1
  assert "neither config.json nor metrics.jsonl" in capsys.readouterr().err
  assert report.main([str(tmp_path / "absent")]) == 1
  assert "no folder" in capsys.readouterr().err
  (tmp_path / "config.json").write_text('{"name": "cut sho')
  assert report.main([str(tmp_path)]) == 1
  assert "config.json is not JSON" in capsys.readouterr().err


def test_an_artifact_cut_short_is_left_out(tmp_path, capsys):
  whole = synthetic.write(tmp_path)
  file = whole / "artifacts" / "retrieval.npz"
  file.write_bytes(file.read_bytes()[:200])
  found = report_data.read(whole).artifacts
  assert "retrieval" not in found and "zero_shot_group" in found
  assert f"left out {file}" in capsys.readouterr().out


def test_files_without_results_are_named(tmp_path, capsys):
  (tmp_path / "list.json").write_text("[]")
  (tmp_path / "good.json").write_text('{"title": "x", "metrics": {}}')
  names = [str(tmp_path / f"{n}.json") for n in ("list", "absent", "good")]
  assert report.others(names) == [{"title": "x", "metrics": {}}]
  printed = capsys.readouterr().out
  assert names[0] in printed and names[1] in printed and names[2] not in printed


def test_results_of_one_run_stand_beside_another(workdir, tmp_path, capsys, no_figures):
  out = tmp_path / "results.json"
  arguments = [str(workdir), "--results", str(out), "--title", "Dense twin"]
  assert report.main(arguments) == 0
  saved = json.loads(out.read_text())
  assert (saved["title"], saved["step"]) == ("Dense twin", 200)
  assert report.main([str(workdir), "--beside", str(out)]) == 0
  printed = capsys.readouterr().out
  assert "Dense twin, without flag" in printed
  value = saved["metrics"]["eval/retrieval/i2t_r1"]
  assert len(re.findall(f"{value:.3f}", printed)) >= 2


def test_only_a_retrieval_on_held_out_items_is_the_headline(workdir):
  run = report_data.read(workdir)
  assert report.main_retrieval(run) == "retrieval"
  assert run.split("retrieval_train") == "train"
  assert run.subsets("retrieval") == ["without_flag"]
  assert run.retrievals()["retrieval"] == ["i2t", "t2i"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_held_out_split_has_the_floor_of_the_ridge(workdir, monkeypatch, split):
  run = report_data.read(workdir)
  opened = []

  def source(run, split, options=None):
    opened.append(split)
    return ()

  monkeypatch.setattr(report_data, "open_source", source)
  monkeypatch.setattr(report_data.Run, "split", lambda self, name: split)
  monkeypatch.setattr("benchmarks.emoji_floors.floors", lambda *_: {"i2t_r1": 0.5})
  floor = report_data._floor(run, "retrieval")
  assert floor == {"title": "ridge on 24x24 pixels", "i2t_r1": 0.5}
  assert opened == ["train", split]


def test_captions_are_english():
  example = {"captions": {"ja": ("猫",), "en": ("cat", "kitty")}}
  assert report_pictures.caption(example) == "cat"
  assert report_pictures.caption({"text": b"bytes"}) == "bytes"
  assert report_pictures.caption({"captions": {"en": ()}}) == ""


def test_queries_shown_are_fixed_and_not_all():
  first = report_pictures.picked(100, 8)
  np.testing.assert_array_equal(first, report_pictures.picked(100, 8))
  assert len(set(first)) == 8
  assert len(report_pictures.picked(3, 8)) == 3


def test_smoothing_keeps_constants_and_length():
  np.testing.assert_allclose(report_plots.smooth(np.full(30, 2.0), 0.1), 2.0)


def test_training_time_counts_every_step(workdir):
  run = report_data.read(workdir)
  # 200 steps of 8 at about 300 examples a second
  assert report.training_time(run, 8) == f"{200 * 8 / 300 / 60:.1f} min"


def test_pictures_of_retrieval_where_one_image_has_several_captions():
  from tests.input_pipeline import pairs
  from tools import report_pictures

  source = [pairs.pair(i) for i in range(6)]
  artifact = {
    "index": np.arange(6),
    "i2t_query": np.array([0, 2, 4]),
    "i2t_top": np.array([[1, 0], [2, 3], [5, 0]]),
    "i2t_correct": np.array([[True, False]] * 3),
  }
  assert report_pictures.grid(artifact, "i2t", source)
