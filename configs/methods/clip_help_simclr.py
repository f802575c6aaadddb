"""SimCLR on emoji, guided by a frozen CLIP (arXiv 2306.04272): a second positive.

python train.py --config configs/methods/clip_help_simclr.py --workdir runs/guided \
  --config.frozen_from=runs/clip_emoji
Train configs/clip_emoji.py first: its image tower is the guide, which has seen the
names of the training drawings and stays as it is; this run's towers start anew. Without
frozen_from the guide is their random start, and helps nothing. Else as simclr.py.
Differences: model/losses/guided_ntxent.py has the paper's other three modes.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs.methods import simclr

METHOD = dict(
  title="On the Generalization of Multi-modal Contrastive Learning",
  paper="arXiv 2306.04272",
  files=("model/losses/guided_ntxent.py", "model/objectives/contrastive.py"),
  tests=("tests/model/losses/test_guided_ntxent.py",),
  positives="neighbours",
  query="each view",
  key="its partner, a guide's choice",
  similarity="cosine",
  family="softmax",
  negatives="batch",
  update="frozen",
)


def get_config(arg: str = ""):
  c = simclr.get_config(arg)
  c.name = c.name.replace("simclr", "clip_help_simclr")
  options = dict(mode="add_pos", pairs=(simclr.NAMES,), temperature=0.5)
  options["label"] = "label_group"
  c.objective.options.losses = (("guided_ntxent", 1.0, options),)
  c.objective.options.teacher = "frozen"
  return c
