"""AMCL on emoji: four heads, a temperature for each pair (arXiv 2310.05615).

python train.py --config configs/methods/amcl.py --workdir runs/amcl
Differences: images and names, not views of several augmentations; heads are parts of
one projection, temperatures come from similarities (see model/losses/amcl.py).
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Adaptive Multi-head Contrastive Learning",
  paper="arXiv 2310.05615",
  files=("model/losses/amcl.py",),
  tests=("tests/model/losses/test_amcl.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "amcl", ("amcl", 1.0, dict(heads=4)))
