"""FILIP on emoji: patches and word pieces find each other (arXiv 2111.07783).

python train.py --config configs/methods/filip.py --workdir runs/filip
InfoNCE of the pooled embeddings comes beside it: the evaluators read those, and FILIP
alone does not train them.
Differences: that second loss, no prompts, no masked views; 24 of 36 patches, kept at
random, and not a quarter of the tokens, chosen by their scores.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="FILIP: Fine-grained Interactive Language-Image Pre-Training",
  paper="arXiv 2111.07783",
  files=("model/losses/filip.py",),
  tests=("tests/model/losses/test_filip.py",),
  positives="pairs",
  query="tokens of each modality",
  key="tokens of the other",
  similarity="late interaction",
  family="softmax",
  negatives="batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  c = emoji.method(arg, "filip")
  width = c.model.trunk.width
  widths = (("image", width), ("text", width))
  c.objective.options.losses += (
    ("filip", 1.0, dict(widths=widths, projection=c.model.embed_dim)),
  )
  return c
