"""SimCLR on emoji, guided by a frozen CLIP (arXiv 2306.04272): a second positive.

python train.py --config configs/clip_emoji.py --workdir runs/guide \
  --config.model.modalities.image.gradients="()" \
  --config.model.modalities.image.colors="()"
python train.py --config configs/methods/clip_help_simclr.py --workdir runs/guided \
  --config.frozen_from=runs/guide
The guide is the image tower of the first run, without the wide path that this one has
not; it knows the names of the training drawings. The towers here start anew. Without
frozen_from the guide is their random start, and of no help. All else is simclr's.
Differences: those of simclr. The paper's other modes are options of the loss.
Expected: not run. Read probe, and labelling_error: second positives of another group.
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
  ((_, weight, options),) = c.objective.options.losses
  options = {**options, "mode": "add_pos", "label": "label_group"}
  c.objective.options.losses = (("guided_ntxent", weight, options),)
  c.objective.options.teacher = "frozen"
  return c
