"""SupCon on emoji: whole subgroups as positives (arXiv 2004.11362).

python train.py --config configs/methods/supcon.py --workdir runs/supcon
Differences: images and names, not two views of an image; a subgroup (100 of them) is
the class. Read zero_shot_subgroup: names within a subgroup are not told apart.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Supervised Contrastive Learning",
  paper="arXiv 2004.11362",
  files=("model/losses/supcon.py", "input_pipeline/transforms/id_from_label.py"),
  tests=("tests/model/losses/test_supcon.py",),
  positives="labels",
  query="each modality",
  key="the other modality",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "supcon", ("supcon", 1.0, {}))
  c.data.transforms += (("id_from_label", dict(label="subgroup")),)
  return c
