"""M3CoL on emoji: mixtures, then soft targets, beside a classifier (arXiv 2409.17777).

python train.py --config configs/methods/m3col.py --workdir runs/m3col
Classifies the nine groups by drawing, by name and by both. Drawings are mixed as
pixels, names as embeddings, each in half of the examples.
Differences: from scratch; no gradient through the soft targets. 0.2 is the paper's 0.1:
a loss here is the mean over both roles, there their sum.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Harnessing Shared Relations via Multimodal Mixup Contrastive Learning for "
  "Multimodal Classification",
  paper="arXiv 2409.17777",
  files=(
    "model/losses/m3co.py",
    "model/objectives/mixup.py",
    "model/views/mix.py",
    "model/heads/fusion.py",
  ),
  tests=(
    "tests/model/losses/test_m3co.py",
    "tests/model/objectives/test_mixup.py",
    "tests/model/views/test_mix.py",
    "tests/model/heads/test_fusion.py",
  ),
  positives="mixtures",
  query="mixtures of each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)
IMAGE_TEXT = ("image", "text")


def get_config(arg: str = ""):
  c = emoji.method(arg, "m3col")
  soft = dict(
    pairs=(("text", "image"), ("image", "text")),
    kernel="exp",
    soft="both",
    width=0.125,
    temperature=0.125,
    learned=False,
  )
  classify = dict(
    modalities=("image_class", "text_class", "fusion_class"),
    labels="label_group",
    form="softmax",
  )
  c.objective.name = "mixup"
  del c.objective.options["losses"]
  c.objective.options.update(
    switch=c.total_steps // 3,
    modalities=IMAGE_TEXT,
    inputs=("image",),
    heads=((IMAGE_TEXT, "fusion", dict(classes=9)),),
    first=(("m3co", 0.2, {}),),
    then=(("cwcl", 0.2, soft),),
    always=(("multilabel", 3.0, classify),),  # of three classifiers, the sum
  )
  probe = dict(split=c.evaluators[0][2]["split"], source=dict(skin_tones=False))
  c.evaluators += (("probe", 0, probe),)
  return c
