"""Bags on emoji: crops of a drawing and several of its names (arXiv 2212.05561).

python train.py --config configs/methods/mil_multimodal.py --workdir runs/mil_multimodal
Each example fills four rows of a batch, a bag: crops as the regions, English names and
aliases as the sentences, drawn with replacement. 128 rows are 32 bags.
Differences: no pooling network. A crop is compared with bags of names and a name with
bags of crops, by the log of the sum of exp over that bag; the paper has one score for
each pair of bags, for which a log of a mean of exp is one of its poolings. One crop is
encoded at a time, not a grid of region features.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Using Multiple Instance Learning to Build Multimodal Representations",
  paper="arXiv 2212.05561",
  files=("model/losses/mil_nce.py", "input_pipeline/examples.py"),
  tests=("tests/model/losses/test_mil_nce.py",),
  positives="bags",
  query="a crop, or a name",
  key="the bag of the other",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "mil_multimodal", ("mil_nce", 1.0, dict(joint=False)))
  c.data.repeat = 4
  crop = dict(scale=(0.25, 1.0), ratio=(0.75, 1.33))
  emoji.replace(c, "random_resized_crop", ("random_resized_crop", crop))
  emoji.replace(c, "sample_caption", ("sample_caption", {}))
  return c
