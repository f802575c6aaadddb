"""Where negatives come from, and nothing else: the axis of a survey (arXiv 2011.00362).

python train.py --config configs/methods/contrastive_ssl_survey.py:negatives=queue \\
  --workdir runs/queue
negatives=batch: end to end, the batch's other views (infonce); bank: a stored row of
every drawing; queue: past keys of an averaged encoder
(MoCo), but for those of the same drawing. Views, head, temperature,
optimizer and steps are the same. The survey's fourth source, clusters (SwAV's codes),
is not built; nor is the triplet loss, which another survey (arXiv 2010.05113) lists.
Expected: not run. Read probe.
Arguments: negatives; seed=N, runlocal (seconds), tune (validation families, not the
test split).
"""

from configs import args as args_lib
from configs import emoji, emoji_views

SOURCES = ("batch", "bank", "queue")
METHOD = dict(
  title="A Survey on Contrastive Self-supervised Learning",
  paper="arXiv 2011.00362",
  files=(
    "model/objectives/contrastive.py",
    "model/objectives/bank.py",
    "model/objectives/moco.py",
  ),
  tests=("tests/model/objectives/test_moco.py",),
  positives="views",
  query="a view of an image",
  key="another view, averaged encoder",
  similarity="cosine",
  family="softmax",
  negatives="queue",
  update="momentum",
)


def get_config(arg: str = ""):
  source = args_lib.parse(arg, **emoji.ARGS, negatives="queue").negatives
  if source not in SOURCES:
    raise ValueError(f"recipe argument negatives = {source!r} must be one of {SOURCES}")
  rest = ",".join(p for p in arg.split(",") if not p.strip().startswith("negatives"))
  seen = emoji_views.two_views(crop=(0.2, 1.0), brightness=0.4, contrast=0.4)
  pairs = seen.pop("pairs")
  head = ((pairs[0], "projection", dict(layers=2, out=128, norm="none")),)
  c = emoji_views.method(rest, "contrastive_ssl_survey", "contrastive")
  shared = dict(**seen, heads=head)
  if source == "batch":
    loss = dict(pairs=pairs, temperature=0.2, learned=False)
    emoji_views.set_objective(
      c, "contrastive", losses=(("infonce", 1.0, loss),), **shared
    )
  elif source == "bank":
    options = dict(pairs=pairs, temperature=0.2, rows=4096, form="softmax")
    emoji_views.set_objective(c, "bank", **options, **shared)
  else:
    options = dict(pairs=pairs, temperature=0.2, in_batch=False, negatives="ids")
    queue = 8 * c.batch_size
    emoji_views.set_objective(c, "moco", **options, queue=queue, **shared)
    c.ema, c.ema_warmup = 0.99, False
  return c
