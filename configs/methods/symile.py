"""Symile on emoji: a drawing, its English and its German name (arXiv 2411.01053).

python train.py --config configs/methods/symile.py --workdir runs/symile
Differences: the third modality is a second language, not audio or records; nothing is
missing, and the paper's learned token for that is not built. Retrieval scores pairs by
cosine, not by the product of three that is trained: read the loss, and retrieval as a
by-product.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title=(
    "Contrasting with Symile: Simple Model-Agnostic Representation Learning "
    "for Unlimited Modalities"
  ),
  paper="arXiv 2411.01053",
  files=("model/losses/symile.py",),
  tests=("tests/model/losses/test_symile.py",),
  positives="tuples",
  query="each modality in turn",
  key="tuples of all others",
  similarity="product",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "symile")
  texts = emoji.add_languages(c, "de")
  names = ("image", "text", *texts)
  c.objective.options.losses = (("symile", 1.0, dict(modalities=names)),)
  return c
