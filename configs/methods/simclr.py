"""SimCLR on emoji: two views of each drawing, no names (arXiv 2002.05709).

python train.py --config configs/methods/simclr.py --workdir runs/simclr
Differences: clip_emoji's image tower and optimizer, not a ResNet and LARS; the colour
jitter and the temperature are those of CIFAR's recipe; crops keep a third of the area,
as the drawings have 72 pixels. Read probe: what the embedding before the head knows.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

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
NAMES = ("image_1", "image_2")
AUGMENT = dict(
  mean=emoji.MEAN,
  std=emoji.STD,
  crop=(0.33, 1.0),
  brightness=0.4,
  contrast=0.4,
  saturation=0.4,
  hue=0.1,
)


def image_only(c) -> None:
  """Leaves the names out, and to the objective what is done to the drawings."""
  del c.model.modalities["text"]
  c.model.moe.update(dict(every=0))
  decode, resize, normalize, *_ = c.data.eval_transforms
  c.data.transforms = c.data.eval_transforms = (decode, resize, normalize)
  c.data.tokenizer = ""
  held_out = c.evaluators[0][2]["split"]
  c.evaluators = (
    ("probe", c.checkpoint.every, dict(split=held_out, source=dict(skin_tones=False))),
    ("health", 0, dict(split=held_out)),
  )
  if c.checkpoint.best:
    c.checkpoint.best = "probe/group_knn_top1"


def get_config(arg: str = ""):
  loss = ("ntxent", 1.0, dict(pairs=(NAMES,), temperature=0.5))
  c = emoji.method(arg, "simclr", loss)
  image_only(c)
  c.objective.options.views = (("image", NAMES, (("augment", AUGMENT),)),)
  c.objective.options.heads = ((NAMES, "projection", dict(layers=2, out=128)),)
  return c
