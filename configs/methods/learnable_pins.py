"""Learnable PINs on emoji: a margin and capped negatives (arXiv 1805.00833).

python train.py --config configs/methods/learnable_pins.py --workdir runs/learnable_pins
Drawings that look the same share an id: the paper's track.
Differences: drawings and names, not faces and voices; hardness stays at 0.5, where the
paper raises it from 0.3 to 0.8: a loss does not know the step.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split).
"""

from configs import emoji

METHOD = dict(
  title="Learnable PINs: Cross-Modal Embeddings for Person Identity",
  paper="arXiv 1805.00833",
  files=("model/losses/learnable_pins.py",),
  tests=("tests/model/losses/test_learnable_pins.py",),
  positives="pairs",
  query="image",
  key="text",
  similarity="distance",
  family="energy",
  negatives="hard batch",
  update="end-to-end",
)


def get_config(arg: str = ""):
  return emoji.method(
    arg, "learnable_pins", ("learnable_pins", 1.0, dict(hardness=0.5))
  )
