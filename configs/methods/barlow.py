"""Barlow Twins on emoji: correlations near the identity (arXiv 2103.03230).

python train.py --config configs/methods/barlow.py --workdir runs/barlow
Differences: images and names, not two views; 128 dimensions without a wide projector;
the loss is scaled by 0.024, as in the released recipe.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
  paper="arXiv 2103.03230",
  files=("model/losses/barlow.py",),
  tests=("tests/model/losses/test_barlow.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="correlation",
  family="decorrelation",
  negatives="none",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "barlow", ("barlow", 1.0, dict(scale=0.024)))
