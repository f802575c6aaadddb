"""CLEF's first stage on emoji: subgroups as activities (arXiv 2304.00058).

python train.py --config configs/methods/clef.py --workdir runs/clef
Drawings of one subgroup are positives, except variants of the same concept (family, in
the place of the subject); the text is the subgroup's name.
Differences: no faces, no people, no second stage; the text tower is trained, not
frozen. zero_shot_subgroup is the figure to read: names of concepts are never seen.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title=(
    "Weakly-Supervised Text-driven Contrastive Learning for Facial Behavior "
    "Understanding"
  ),
  paper="arXiv 2304.00058",
  files=("model/losses/clef.py", "input_pipeline/transforms/keep.py"),
  tests=("tests/model/losses/test_clef.py",),
  positives="labels",
  query="image",
  key="images, descriptions of groups",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  options = dict(group="label_subgroup", subject="family")
  c = emoji.method(arg, "clef", ("clef", 1.0, options))
  names = dict(captions="class_names", language="subgroup", share=1.0, main=1.0)
  emoji.replace(
    c,
    "sample_caption",
    ("keep", dict(keys=("family",))),
    ("sample_caption", names),
  )
  return c
