"""Decoupled contrastive learning on emoji (arXiv 2110.06848).

python train.py --config configs/methods/dcl.py --workdir runs/dcl
Differences: images and names, not two views of an image; no negatives within a
modality (options intra=True), no weights (sigma=0.5 is DCLW).
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Decoupled Contrastive Learning",
  paper="arXiv 2110.06848",
  files=("model/losses/dcl.py",),
  tests=("tests/model/losses/test_dcl.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "dcl", ("dcl", 1.0, dict(temperature=0.1)))
