"""What recipes that learn from the emoji drawings alone share: views of images.

They have no text tower. Crops and colours are views, made on the device, and not
transforms; towers have no wide path, whose descriptors hardly change from view to view.
"""

from ml_collections import ConfigDict

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
  held_out = c.evaluators[0][2]["split"]
  c.evaluators = (
    ("probe", c.checkpoint.every, dict(split=held_out, source=dict(skin_tones=False))),
    ("health", 0, dict(split=held_out)),
  )
  if c.checkpoint.best:  # retrieval, which needs text
    c.checkpoint.best = "probe/group_knn_top1"
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
