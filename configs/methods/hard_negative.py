"""Hard negatives on emoji, debiased (arXiv 2010.04592).

python train.py --config configs/methods/hard_negative.py --workdir runs/hard_negative
Differences: images and names, not two views; no negatives within a modality; tau_plus
is 0.01, about the chance that two concepts are of one subgroup of a hundred.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Contrastive Learning with Hard Negative Samples",
  paper="arXiv 2010.04592",
  files=("model/losses/hard_negative.py",),
  tests=("tests/model/losses/test_hard_negative.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="weighted batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  options = dict(beta=1.0, tau_plus=0.01)
  return emoji.method(arg, "hard_negative", ("hard_negative", 1.0, options))
