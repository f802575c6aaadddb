"""MoCo v2 on emoji drawings, without their names (arXiv 2003.04297).

python train.py --config configs/methods/moco_v2.py --workdir runs/moco_v2
The paper's views, head of two layers, temperature of 0.2 and cosine schedule.
Differences: a small ViT and AdamW, not a ResNet-50 and SGD; no batch norm, so that
nothing leaks between a query and its key and no batch is shuffled; 1,024 keys and
m = 0.99, not 65,536 and 0.999, for 800 steps of 128; the queue holds a third of the
data, so keys of the query's own example are left out.
Expected: not run. Read probe.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji_views

BATCHES = 8  # in the queue
METHOD = dict(
  title="Improved Baselines with Momentum Contrastive Learning",
  paper="arXiv 2003.04297",
  files=("model/objectives/moco.py", "model/objectives/memory.py"),
  tests=(
    "tests/model/objectives/test_moco.py",
    "tests/model/objectives/test_memory.py",
  ),
  positives="views",
  query="a view of an image",
  key="another view, averaged encoder",
  similarity="cosine",
  family="softmax",
  negatives="queue",
  update="momentum",
)


def get_config(arg: str = ""):
  views = emoji_views.two_views(
    crop=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
  )
  head = dict(layers=2, out=128, norm="none")
  c = emoji_views.method(
    arg,
    "moco_v2",
    "moco",
    **views,
    symmetric=False,
    heads=((("image_1", "image_2"), "projection", head),),
    temperature=0.2,
    in_batch=False,
    negatives="ids",
  )
  c.objective.options.queue = BATCHES * c.batch_size
  c.ema, c.ema_warmup = 0.99, False
  return c
