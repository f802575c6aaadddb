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
from training import compiled, errors, loop

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Recipe: configs/x.py or configs/x.py:arg; its keys by --config.key=value.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, metrics, artifacts.")
flags.DEFINE_bool("debug", False, "Show the tracebacks of wrong settings too.")
flags.mark_flags_as_required(["config", "workdir"])


def parse(argv):
  """Reads the flags and, with them, the recipe."""
  with errors.parsing():
    left = flags.FLAGS(argv)[1:]
    if left:
      raise flags.Error(f"unexpected arguments {left}: did you mean --{left[0]}?")
    _ = _CONFIG.value.keys  # a recipe that failed to load says so when it is read
    return argv[:1]


def main(argv):
  """Brings the hosts up, then hands over to the loop."""
  del argv
  logging.set_verbosity(logging.WARNING)
  config, workdir = _CONFIG.value, str(_WORKDIR.value)
  compiled.keep(config.compilation_cache, workdir)
  with errors.settings(), errors.hosts():
    distributed.initialize(config.hosts.join_s, config.hosts.lost_s)
  with distributed.together():
    status = loop.run(config, workdir)
  sys.exit(status)


if __name__ == "__main__":
  with errors.shown(debug="--debug" in sys.argv):  # the flags may fail to be parsed
    app.run(main, flags_parser=parse)
