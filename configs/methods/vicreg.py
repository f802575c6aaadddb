"""VICReg on emoji: variance, invariance, covariance (arXiv 2105.04906).

python train.py --config configs/methods/vicreg.py --workdir runs/vicreg
Differences: images and names, not two views; 128 dimensions without a wide projector.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title=(
    "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"
  ),
  paper="arXiv 2105.04906",
  files=("model/losses/vicreg.py",),
  tests=("tests/model/losses/test_vicreg.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="distance",
  family="decorrelation",
  negatives="none",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "vicreg", ("vicreg", 1.0, {}))
