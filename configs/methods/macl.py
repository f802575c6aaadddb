"""MACL on emoji: the temperature follows the alignment (arXiv 2207.07874).

python train.py --config configs/methods/macl.py --workdir runs/macl
Differences: images and names, not two views of an image; the paper's alpha is tuned
for each data set, here it is 0.5.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Model-Aware Contrastive Learning: Towards Escaping the Dilemmas",
  paper="arXiv 2207.07874",
  files=("model/losses/macl.py",),
  tests=("tests/model/losses/test_macl.py",),
  positives="pairs",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(arg, "macl", ("macl", 1.0, dict(temperature=0.1, alpha=0.5)))
