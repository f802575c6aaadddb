"""Many channels over time and what somebody wrote of them: sensors, motion, ECGs.

python train.py --config configs/series_text.py:channels=12 --workdir runs/series
Examples hold `captions` and `values`: numbers [t, channels], as lists, an array or the
bytes of a .npy. A patch is 16 steps of all channels. Not run on real data
by us: no figure is claimed.
"""

from configs import any_text, base
from configs import args as args_lib

PAIRS = (("series", "text"),)


def get_config(arg: str = ""):
  args = args_lib.parse(arg, channels=6, **any_text.ARGS)
  c = base.get_config()
  c.name = "series_text"
  c.total_steps, c.batch_size = 20_000, 512
  size, patch = (512, args.channels, 1), (16, args.channels)
  series = base.modality(size=size, patch=patch)
  c.model.modalities = dict(series=series, text=any_text.text())
  c.objective.options.losses = (("infonce", 1.0, dict(pairs=PAIRS)),)
  return any_text.finish(
    c,
    args,
    PAIRS,
    train=(("series", {}),),
    evaluate=(("series", dict(crop="first")),),
    tiny=dict(series=dict(size=(48, 3, 1), patch=(4, 3))),
  )
