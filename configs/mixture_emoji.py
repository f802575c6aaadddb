"""CLIP on a mixture of two sources: emoji named in English, later also in German.

python train.py --config configs/mixture_emoji.py --workdir runs/mixture_emoji
German names begin at a tenth of the examples and are half of them from the middle of
the run on: the shares are exact, see docs/mixtures.md. Batches are of names of like
length. Evaluation reads the English source, and retrieval_german the other one.
Expected: not run.
Arguments: seed=N, runlocal (seconds), tune (validation families, not the test split),
styles (all concepts in two styles of drawing, tested in a third).
"""

from configs import args as args_lib
from configs import base, emoji


def get_config(arg: str = ""):
  args = args_lib.parse(arg, **emoji.ARGS)
  c = base.get_config()
  emoji.set_model(c)
  c = emoji.finish(c, args, "mixture_emoji")
  middle = c.total_steps * c.batch_size // 2  # in examples
  # Both are the same emoji: equal ids mean equal things. One source says what it
  # changes of config.data, here the language.
  german = dict(options=dict(languages=("de",)), ids="emoji")
  c.data.mixture = (
    ("english", ((0, 0.9), (middle, 0.5)), dict(ids="emoji")),
    ("german", ((0, 0.1), (middle, 0.5)), german),
  )
  c.data.buckets = (8,)
  held_out = c.evaluators[0][2]["split"]
  options = dict(split=held_out, source=dict(source="german"))
  c.evaluators += (("retrieval", 0, dict(name="retrieval_german", **options)),)
  return c
