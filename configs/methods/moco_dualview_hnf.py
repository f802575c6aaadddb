"""MoCo with keys as anchors and hard negatives, on emoji drawings (arXiv 2501.16360).

python train.py --config configs/methods/moco_dualview_hnf.py \\
  --workdir runs/moco_dualview_hnf
moco_v2 with three changes: both views are queries and keys; each direction has the same
loss with the key as anchor (options key_anchor); the 128 keys of the queue that are
most similar to the anchor are the negatives (options hard; skip leaves out the very
first of them).
Differences: of the paper only the abstract's claims are known here. The number of
negatives, the weights, and whether the loss around the key reaches a second query are
unverified; the key has no gradient here, so that its term pulls the query alone.
Expected: not run. Read probe.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs.methods import moco_v2

METHOD = dict(
  title="Momentum Contrastive Learning with Enhanced Negative Sampling and Hard "
  "Negative Filtering",
  paper="arXiv 2501.16360",
  files=("model/objectives/moco.py", "model/objectives/memory.py"),
  tests=("tests/model/objectives/test_moco.py",),
  positives="views",
  query="views, averaged ones too",
  key="other view, averaged encoder",
  similarity="cosine",
  family="softmax",
  negatives="queue",
  update="momentum",
)


def get_config(arg: str = ""):
  c = moco_v2.get_config(arg)
  c.name = c.name.replace("moco_v2", "moco_dualview_hnf")
  hard = c.objective.options.queue // moco_v2.BATCHES
  c.objective.options.update(dict(symmetric=True, key_anchor=1.0, hard=hard))
  return c
