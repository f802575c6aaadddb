"""Contrastive multiview coding of emoji: lightness against colour (arXiv 1906.05849).

python train.py --config configs/methods/cmc.py --workdir runs/cmc
The views are L and ab of one crop; a bank holds both of every drawing. Its other forms:
--config.objective.options.form=softmax; within the batch, objective "contrastive" with
the same views and losses=(("infonce", 1.0, dict(pairs=...)),): all pairs of views are
the full graph, those with one of them the core view. The bank takes such pairs, too.
Differences: a small ViT, whose stem alone has weights of its own for each view, not two
half networks; 1,024 negatives of 4,096 places, drawn once for a step, not 16,384 for
each row; the mean of the directions, not the sum; AdamW.
Evaluators show the tower both views at once, whole Lab images: their stems are added.
Expected: not run. Read probe.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji, emoji_views

METHOD = dict(
  title="Contrastive Multiview Coding",
  paper="arXiv 1906.05849",
  files=(
    "model/objectives/bank.py",
    "model/objectives/memory.py",
    "model/views/lab.py",
  ),
  tests=("tests/model/objectives/test_bank.py", "tests/model/views/test_lab.py"),
  positives="views",
  query="lightness, and colour",
  key="the other, stored",
  similarity="cosine",
  family="nce",
  negatives="bank",
  update="bank",
)
PLACES = 4096  # more than the ids of the drawings, and a multiple of many devices


def get_config(arg: str = ""):
  names = {"l": "image_l", "ab": "image_ab"}
  c = emoji_views.method(
    arg,
    "cmc",
    "bank",
    rows=PLACES,
    pairs=(tuple(names.values()),),
    form="nce",
    drawn=PLACES // 4,
    temperature=0.07,
    momentum=0.5,
    views=tuple(
      ("image", (name,), (("lab", dict(keep=keep, **emoji_views.PIXELS)),))
      for keep, name in names.items()
    ),
  )
  # Both views are of one crop, which is therefore made before them.
  emoji.replace(
    c, "resize", ("random_resized_crop", dict(scale=(0.2, 1.0))), ("flip", {})
  )
  *before, _ = c.data.eval_transforms
  c.data.eval_transforms = (*before, ("lab", {}))
  return c
