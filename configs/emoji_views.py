"""What recipes that learn from the emoji drawings alone share: views of images.

They have no text tower. Crops and colours are views, made on the device, and not
transforms; towers have no wide path, whose descriptors hardly change from view to view.
"""

from ml_collections import ConfigDict

from configs import args as args_lib
from configs import emoji

PIXELS = dict(mean=emoji.MEAN, std=emoji.STD)  # what views must know of normalising


def method(arg: str, name: str, objective: str, **options) -> ConfigDict:
  """Returns a recipe for images alone, with an objective and its options.

  Args:
    arg: what follows the colon on the command line.
    name: of the run.
    objective: a file of model/objectives/.
    **options: its options.
  """
  args = args_lib.parse(arg, **emoji.METHOD_ARGS)
  c = emoji.method(arg, name)
  del c.model.modalities["text"]
  c.model.modalities.image.update(
    dict(gradients=(), colors=(), drop_descriptors=0.0, drop_patches=0.0)
  )
  c.model.trunk.dropout = 0.0
  c.data.tokenizer = ""
  kept = ("decode_image", "resize", "normalize")
  seen = tuple(t for t in c.data.eval_transforms if t[0] in kept)
  c.data.transforms = c.data.eval_transforms = seen
  c.checkpoint.best = ""  # retrieval, as zero-shot, needs text
  held_out = "validation" if args.tune else "test"
  c.evaluators = (("health", c.checkpoint.every, dict(split=held_out)),)
  set_objective(c, objective, **options)
  return c


def set_objective(c: ConfigDict, name: str, **options) -> None:
  """Sets `c.objective`, without the losses of the default one."""
  c.objective.name = name
  c.objective.options = ConfigDict(options, convert_dict=False)


def two_views(**augment) -> dict:
  """Returns the options `pairs` and `views`: two augmentations of each image."""
  names = ("image_1", "image_2")
  steps = (("augment", {**PIXELS, **augment}),)
  return dict(pairs=(names,), views=(("image", names, steps),))
