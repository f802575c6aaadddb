"""CLIP of three modalities, pair by pair: the baseline of Symile (arXiv 2103.00020).

python train.py --config configs/methods/n_pairwise.py --workdir runs/n_pairwise
A drawing, its English and its German name: InfoNCE over all three pairs.
Differences: CLIP has one pair; configs/methods/symile.py is the same but for the loss.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

import itertools

from configs import emoji

METHOD = dict(
  title="Pairwise CLIP of several modalities",
  paper="arXiv 2103.00020",
  files=("model/losses/infonce.py",),
  tests=("tests/model/losses/test_infonce.py",),
  positives="pairs",
  query="each modality",
  key="each other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "n_pairwise")
  names = ("image", "text", *emoji.add_languages(c, "de"))
  pairs = tuple(itertools.combinations(names, 2))
  c.objective.options.losses = (("infonce", 1.0, dict(pairs=pairs)),)
  return c
