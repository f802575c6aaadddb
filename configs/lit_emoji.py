"""LiT on emoji (arXiv 2111.07991): a frozen image tower, only the text tower learns.

python train.py --config configs/clip_emoji.py --workdir runs/clip_emoji
python train.py --config configs/lit_emoji.py --workdir runs/lit_emoji \
  --config.init_from=runs/clip_emoji
The paper freezes a tower trained on labels; no such tower ships in a package, so ours
comes from clip_emoji. It has seen the training drawings only. Without init_from the
frozen tower is random, a floor of its own.
Arguments: seed=N, runlocal (seconds), tune (evaluates on validation families instead of
the test split).
"""

from configs import args as args_lib
from configs import base, emoji


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **emoji.ARGS)
  c = base.get_config()
  emoji.set_model(c)
  c = emoji.finish(c, args, "lit_emoji")
  c.optimizer.frozen = (emoji.IMAGE_TOWER,)
  return c
