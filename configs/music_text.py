"""Tunes in ABC notation and their descriptions: CLaMP's bar patches (arXiv 2304.11029).

python train.py --config configs/music_text.py --workdir runs/music
Examples hold `captions` and `abc`. Differences from the paper: a trunk from scratch and
no pre-training by masked music modelling; UTF-8 bytes instead of its 96 letters; a bar
of more than 64 letters goes on in the next patch, there it is cut. Not run on real data
by us: no figure is claimed.
"""

from configs import any_text, base
from configs import args as args_lib

PAIRS = (("music", "text"),)


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **any_text.ARGS)
  c = base.get_config()
  c.name = "music_text"
  c.total_steps, c.batch_size = 20_000, 512
  music = base.modality(stem="token_patches", vocab=128, length=256, patch=(64,))
  c.model.modalities = dict(music=music, text=any_text.text(length=128))
  c.objective.options.losses = (("infonce", 1.0, dict(pairs=PAIRS)),)
  patches: tuple = (("text_patches", {}),)
  tiny = dict(music=dict(length=12, patch=(8,)))
  return any_text.finish(c, args, PAIRS, patches, patches, tiny)
