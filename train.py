"""Trains the model of a config.

python train.py --config configs/limoe_emoji.py --workdir runs/limoe_emoji
python train.py --config configs/clip_b16.py:data=my_tfds --workdir gs://bucket/run \
  --config.batch_size=4096

Run it again to resume. On several hosts, run it on each: see sharding/distributed.py.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from sharding import distributed
from training import loop

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics, artifacts.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
  """Brings the hosts up, then hands over to the loop."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: did you mean --{argv[1]}?")
  logging.set_verbosity(logging.WARNING)
  distributed.initialize()
  sys.exit(loop.run(_CONFIG.value, str(_WORKDIR.value)))


if __name__ == "__main__":
  app.run(main)
