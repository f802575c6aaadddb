"""CCLK on emoji: positives by a kernel of group and subgroup (arXiv 2202.05458).

python train.py --config configs/methods/cclk.py --workdir runs/cclk
Differences: images and names, not two views; the condition is two labels, one-hot,
where the paper has attributes of birds and shoes. mode="negatives" with condition=None
is its hard negatives.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Conditional Contrastive Learning with Kernel",
  paper="arXiv 2202.05458",
  files=("model/losses/cclk.py", "input_pipeline/transforms/one_hot.py"),
  tests=("tests/model/losses/test_cclk.py",),
  positives="labels",
  query="each modality",
  key="both modalities",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  options = dict(condition="condition", mode="positives", ridge=0.01)
  c = emoji.method(arg, "cclk", ("cclk", 1.0, options))
  c.data.transforms += (("one_hot", dict(labels=(("group", 9), ("subgroup", 100)))),)
  return c
