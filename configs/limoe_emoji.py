"""LIMoE on emoji: one small sparse trunk reads drawings and names (arXiv 2206.02770).

python train.py --config configs/limoe_emoji.py --workdir runs/limoe_emoji
Arguments: seed=N, runlocal (seconds), tune (evaluates on validation families instead of
the test split), styles (all concepts, drawn in two styles, tested in a third that is
never seen; needs requirements-styles.txt).
"""

from configs import args as args_lib
from configs import base, emoji


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **emoji.ARGS)
  c = base.get_config()
  emoji.set_model(c)
  emoji.set_moe(c)
  return emoji.finish(c, args, "limoe_emoji", routing=True)
