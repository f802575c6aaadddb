"""SimCLR on emoji: two views of each drawing, no names (arXiv 2002.05709).

python train.py --config configs/methods/simclr.py --workdir runs/simclr
Differences: a small ViT and AdamW, not a ResNet and LARS; the temperature and the half
strength of the colour jitter are those of the paper on CIFAR-10; crops keep a third of
the area, as the drawings have 72 pixels.
Expected: not run. Read probe: what the embedding knows, before the head.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji_views

METHOD = dict(
  title="A Simple Framework for Contrastive Learning of Visual Representations",
  paper="arXiv 2002.05709",
  files=(
    "model/losses/ntxent.py",
    "model/heads/projection.py",
    "model/views/augment.py",
    "evaluators/probe.py",
  ),
  tests=(
    "tests/model/losses/test_ntxent.py",
    "tests/model/heads/test_projection.py",
    "tests/model/views/test_augment.py",
    "tests/evaluators/test_probe.py",
  ),
  positives="views",
  query="each view",
  key="the other view",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  look = emoji_views.two_views(
    crop=(0.33, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
  )
  loss = ("ntxent", 1.0, dict(pairs=look["pairs"], temperature=0.5))
  return emoji_views.method(
    arg,
    "simclr",
    "contrastive",
    losses=(loss,),
    views=look["views"],
    heads=((look["pairs"][0], "projection", dict(layers=2, out=128)),),
  )
