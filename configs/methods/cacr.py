"""CACR on emoji: far positives pulled, near negatives pushed harder (arXiv 2105.03746).

python train.py --config configs/methods/cacr.py --workdir runs/cacr
Differences: images and names, so that each query has one positive and the attraction's
weights do nothing; the paper's gain from several views needs views. Its forms for MoCo
(with an RBF kernel, too) are not built.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Contrastive Attraction and Contrastive Repulsion for Representation Learning",
  paper="arXiv 2105.03746",
  files=("model/losses/cacr.py",),
  tests=("tests/model/losses/test_cacr.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="distance",
  family="energy",
  negatives="weighted batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "cacr", ("cacr", 1.0, {}))
