"""SigLIP on emoji (arXiv 2303.15343): two dense towers and the pairwise sigmoid loss.

python train.py --config configs/siglip_emoji.py --workdir runs/siglip_emoji
Arguments: seed=N, runlocal (seconds), tune (evaluates on validation families instead of
the test split).
"""

from configs import args as args_lib
from configs import base, emoji


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **emoji.ARGS)
  c = base.get_config()
  emoji.set_model(c)
  c = emoji.finish(c, args, "siglip_emoji")
  c.objective.options.losses = (("siglip", 1.0, dict(pairs=base.IMAGE_TEXT)),)
  return c
