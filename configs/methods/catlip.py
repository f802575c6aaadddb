"""CatLIP on emoji: the words of a name as classes of its drawing (arXiv 2404.15653).

python train.py --config configs/methods/catlip.py --workdir runs/catlip
Differences: words stand for WordNet's synsets, which no package here brings
(input_pipeline/transforms/noun_labels.py); 512 classes, not 24,320; the logits start at
-5, where a class is as rare as it is. No text tower: read probe.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="CatLIP: CLIP-level Visual Recognition Accuracy with 2.7x Faster Pre-training "
  "on Web-scale Image-Text Data",
  paper="arXiv 2404.15653",
  files=(
    "model/losses/multilabel.py",
    "model/heads/prototypes.py",
    "input_pipeline/transforms/noun_labels.py",
  ),
  tests=(
    "tests/model/losses/test_multilabel.py",
    "tests/model/heads/test_prototypes.py",
    "tests/input_pipeline/test_noun_labels.py",
  ),
  positives="labels",
  query="image",
  key="vectors of words",
  similarity="logits",
  family="classification",
  negatives="none",
  update="end-to-end",
)
CLASSES = 512


def get_config(arg: str = ""):
  c = emoji.method(arg, "catlip", ("multilabel", 1.0, dict(modalities=("image",))))
  head = ("prototypes", dict(classes=CLASSES, bias=-5.0))
  c.objective.options.heads = ((("image",), *head),)
  del c.model.modalities["text"]
  c.data.tokenizer = ""
  emoji.replace(c, "tokenize", ("noun_labels", dict(classes=CLASSES)))
  decode, resize, normalize, *_ = c.data.eval_transforms
  c.data.eval_transforms = (decode, resize, normalize)
  held_out = c.evaluators[0][2]["split"]
  plain = dict(skin_tones=False)
  labels = ("group", "subgroup")
  c.evaluators = (
    (
      "probe",
      c.checkpoint.every,
      dict(split=held_out, labels=labels, source=plain),
    ),
    ("health", 0, dict(split=held_out)),
  )
  if c.checkpoint.best:
    c.checkpoint.best = "probe/group_knn_top1"
  return c
