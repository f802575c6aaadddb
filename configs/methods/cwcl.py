"""CWCL on emoji: soft targets from a frozen image tower (arXiv 2309.14580).

python train.py --config configs/methods/cwcl.py --workdir runs/cwcl
Train configs/clip_emoji.py first, and add --config.init_from=runs/clip_emoji.
Differences: the frozen tower is that CLIP's, trained on the same drawings, not a strong
one of other data; without init_from it is random. One direction has soft targets.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="CWCL: Cross-Modal Transfer with Continuously Weighted Contrastive Loss",
  paper="arXiv 2309.14580",
  files=("model/losses/cwcl.py",),
  tests=("tests/model/losses/test_cwcl.py",),
  positives="neighbours",
  query="text of the trained tower",
  key="image of the frozen tower",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="frozen",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "cwcl", ("cwcl", 1.0, dict(pairs=(("image", "text"),))))
  c.optimizer.frozen = (emoji.IMAGE_TOWER,)
  return c
