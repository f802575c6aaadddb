"""Decoupled uniformity on emoji, with labels as prior (arXiv 2206.01646).

python train.py --config configs/methods/decoupled_uniformity.py --workdir runs/du
Differences: the centroid is of an image and a name, not of views; the prior is group
and subgroup, one-hot (the paper's weak attributes), not a generative model's latent.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Integrating Prior Knowledge in Contrastive Learning with Kernel",
  paper="arXiv 2206.01646",
  files=(
    "model/losses/decoupled_uniformity.py",
    "input_pipeline/transforms/one_hot.py",
  ),
  tests=("tests/model/losses/test_decoupled_uniformity.py",),
  positives="pairs",
  query="centroid of the modalities",
  key="centroids of other rows",
  similarity="distance",
  family="uniformity",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  options = dict(prior="prior", kernel="rbf", width=1.0)
  c = emoji.method(arg, "decoupled_uniformity", ("decoupled_uniformity", 1.0, options))
  labels = (("group", 9), ("subgroup", 100))
  c.data.transforms += (("one_hot", dict(labels=labels, key="prior")),)
  return c
