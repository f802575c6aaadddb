"""Hydra on emoji: any two subgroups as a positive pair (arXiv 2410.18200).

python train.py --config configs/methods/hydra_simlap.py --workdir runs/hydra_simlap
Half of the rows hold a drawing and the name of another, random one: the gate of their
two subgroups says in which dimensions they are compared.
Differences: a drawing and a name, not two images; pairs of classes come as often as
their examples do, not equally often.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Rethinking Positive Pairs in Contrastive Learning",
  paper="arXiv 2410.18200",
  files=("model/losses/hydra.py", "input_pipeline/transforms/pair_classes.py"),
  tests=("tests/model/losses/test_hydra.py",),
  positives="labels",
  query="each modality",
  key="the other, gated",
  similarity="gated cosine",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "hydra_simlap")
  labels = ("label_subgroup", "label_subgroup_other")
  options = dict(dim=c.model.embed_dim, classes=100, labels=labels)
  c.objective.options.losses = (("hydra", 1.0, options),)
  emoji.replace(
    c,
    "sample_caption",
    ("pair_classes", dict(label="subgroup", share=0.5)),
    ("sample_caption", dict(main=1.0)),
  )
  return c
