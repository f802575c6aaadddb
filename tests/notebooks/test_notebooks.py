"""Every notebook runs from top to bottom and ends with pictures."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own packages warn
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_it_runs(path, monkeypatch):
  nbclient = pytest.importorskip("nbclient")
  nbformat = pytest.importorskip("nbformat")
  monkeypatch.setenv("CONCORD_STEPS", "6")
  monkeypatch.setenv("XLA_FLAGS", "")
  notebook = nbformat.read(path, as_version=4)
  resources = {"metadata": {"path": str(FOLDER)}}
  nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
  pictures = [
    out
    for cell in notebook.cells
    for out in cell.get("outputs", ())
    if "image/png" in out.get("data", {})
  ]
  assert len(pictures) >= 3
