"""CLIP on emoji: two dense towers, the twin of limoe_emoji of equal active size.

python train.py --config configs/clip_emoji.py --workdir runs/clip_emoji
Each tower has the width and depth of LIMoE's trunk, so that a token passes through as
many multiplications as in the sparse model, whose experts it enters one at a time.
Arguments: seed=N, runlocal (seconds), tune (evaluates on validation families instead of
the test split).
"""

from configs import args as args_lib
from configs import base, emoji


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **emoji.ARGS)
  c = base.get_config()
  emoji.set_model(c)
  return emoji.finish(c, args, "clip_emoji")
