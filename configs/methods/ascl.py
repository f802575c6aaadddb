"""ASCL on emoji: soft targets from neighbours within the batch (arXiv 2207.11163).

python train.py --config configs/methods/ascl.py --workdir runs/ascl
Differences: neighbours among the batch's other modality, not in a queue of a momentum
encoder; images and names, not a weak and a strong view. The form on BYOL is not built.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Adaptive Soft Contrastive Learning",
  paper="arXiv 2207.11163",
  files=("model/losses/ascl.py",),
  tests=("tests/model/losses/test_ascl.py",),
  positives="neighbours",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "ascl", ("ascl", 1.0, dict(neighbours=1)))
