"""BriVL on emoji: momentum contrast of images and names (arXiv 2103.06561).

python train.py --config configs/methods/brivl.py --workdir runs/brivl
Both towers have averaged copies and queues of their keys, m = 0.99 and the temperature
of 0.07 of the paper. options positives=32 adds the positives of its code, off there by
default: what is near in both modalities.
Differences: the towers of clip_emoji, all of them trained; 1,024 keys, not 9,600; the
mean of the directions, not the sum; the queue holds a third of the data, so keys of the
query's own example are left out.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import base, emoji, emoji_views

BATCHES = 8  # in a queue
METHOD = dict(
  title="WenLan: Bridging Vision and Language by Large-Scale Multi-Modal Pre-Training",
  paper="arXiv 2103.06561",
  files=("model/objectives/moco.py", "model/objectives/memory.py"),
  tests=(
    "tests/model/objectives/test_moco.py",
    "tests/model/objectives/test_memory.py",
  ),
  positives="pairs",
  query="each modality",
  key="the other modality, averaged encoder",
  similarity="cosine",
  family="softmax",
  negatives="queue",
  update="momentum",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "brivl")
  emoji_views.set_objective(
    c,
    "moco",
    pairs=base.IMAGE_TEXT,
    queue=BATCHES * c.batch_size,
    in_batch=False,
    negatives="ids",
  )
  c.ema, c.ema_warmup = 0.99, False
  return c
