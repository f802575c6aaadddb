"""What is done to images before a model sees them: other libraries' files <-> ours.

Ours are the transforms of config.data.eval_transforms: decode_image, resize, normalize.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from model.interop.describe import CLIP_PIXELS, SIGLIP_PIXELS

# Pillow's numbers, as preprocessor_config.json has them.
FILTERS = {2: "bilinear", 3: "bicubic"}
FILES = ("preprocessor_config.json", "processor_config.json")  # of transformers
CARD = "preprocess_cfg"  # of open_clip's config
PEER = dict(hf="transformers", open_clip="torchvision")  # whose resizing it is
# What transformers' processors do where their file says nothing; the model decides
# where it names none of them.
PROCESSORS: dict[str, Mapping[str, Any]] = dict(
  CLIP=CLIP_PIXELS, Bit=CLIP_PIXELS, Siglip=SIGLIP_PIXELS
)

Steps = tuple[tuple[str, dict[str, Any]], ...]


def steps(
  default: Mapping[str, Any],
  library: str,
  files: Mapping[str, Mapping[str, Any]],
  given: Mapping[str, Any],
  side: int,
  patch: int = 1,
) -> Steps:
  """Returns the transforms of images that a checkpoint asks for.

  Images that its files make larger than the model's by less than a patch are cut, as
  its convolution does. Of any other size, they are made for the model, and a line says
  so.

  Args:
    default: mean, std and crop of its architecture, where nothing is said.
    library: "hf" | "open_clip" | ...
    files: those of `FILES` that lie beside it.
    given: its config.json.
    side: pixels of the model's images.
    patch: pixels of its patches.

  Raises:
    ValueError: a file asks for what `resize` and `normalize` do not do.
  """
  file, said = _said(files, given)
  if file == CARD:
    default = CLIP_PIXELS  # open_clip's own, whatever the model
    crop, made = _open_clip(said), _stated(given, side, patch)
  else:
    default = PROCESSORS.get(_processor(said), default)
    crop, made = _transformers(file, said, default, _stated(given, side, patch))
  if not side <= made < side + patch:
    logging.warning(
      "%s makes images of %d pixels, and the model was trained at %d: they are made of "
      "%d, unless tools.convert is given --size %d, which adapts the model",
      *(file, made, side, side, made),
    )
    made = side
  resize: dict[str, Any] = dict(crop=crop)
  name = _filter(said, str(default.get("filter", "bicubic")))
  resize |= dict(filter=name) if name != "bicubic" else {}
  resize |= dict(as_in=PEER[library]) if library in PEER else {}
  resize |= dict(rest=made - side) if made > side else {}
  normal = _normal(file, said, default)
  return (("decode_image", {}), ("resize", resize), ("normalize", normal))


def _said(
  files: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  """Returns (where it stands, what is said of images, without the prefix image_)."""
  if given.get(CARD):
    return CARD, dict(given[CARD])
  name = next((n for n in FILES if files.get(n)), FILES[0])
  said = files.get(name, {})
  said = said.get("image_processor", said)
  if not isinstance(said, Mapping):
    raise _wrong(name, "image_processor", said, "an object")
  said = {k: v for k, v in said.items() if v is not None or k == "resample"}
  return name, {k.removeprefix("image_"): v for k, v in said.items()}


def _processor(said: Mapping[str, Any]) -> str:
  """Returns "CLIP" of CLIPImageProcessorFast and of the older CLIPFeatureExtractor."""
  name = str(said.get("processor_type") or said.get("feature_extractor_type") or "")
  return name.split("ImageProcessor")[0].split("FeatureExtractor")[0]


def _stated(given: Mapping[str, Any], side: int, patch: int) -> int:
  """Returns the size of images by config.json, if it is of the same patches."""
  model = given.get("model_cfg") or given
  vision = model.get("vision_cfg") or model.get("vision_config") or model
  size = vision.get("image_size") if isinstance(vision, Mapping) else None
  if isinstance(size, Sequence) and len({*size}) == 1:
    size = size[0]
  return size if isinstance(size, int) and side <= size < side + patch else side


def _open_clip(said: Mapping[str, Any]) -> float:
  """Returns the option `crop` of resize."""
  mode = said.get("resize_mode") or "shortest"
  if mode not in ("shortest", "squash"):
    raise ValueError(f"resize_mode = {mode!r}, expected 'shortest' or 'squash'")
  return float(mode == "shortest")


def _transformers(
  file: str, said: Mapping[str, Any], default: Mapping[str, Any], side: int
) -> tuple[float, int]:
  """Returns (the option `crop` of resize, pixels of the images it makes)."""
  for key, expected in (("do_resize", True), ("do_pad", False)):
    if bool(said.get(key, expected)) != expected:
      raise _wrong(file, key, said[key], f"{expected}: images come in all sizes")
  size = said.get("size")
  if not said.get("do_center_crop", default["crop"] > 0):
    made = side if size is None else _square(file, "size", size)
    return 0.0, made
  cut = _square(file, "crop_size", said.get("crop_size", side), number=True)
  if size is None:
    return (default["crop"] or 1.0), cut
  edge: Any = size.get("shortest_edge") if isinstance(size, Mapping) else size
  if _positive(edge) and not (isinstance(size, Mapping) and len(size) > 1):
    return cut / edge, cut
  if _square(file, "size", size) != cut:
    raise _wrong(file, "size", size, f"{cut} x {cut}, as crop_size, or shortest_edge")
  return 0.0, cut


def _square(file: str, key: str, value: Any, number: bool = False) -> int:
  """Returns n of {"height": n, "width": n}, of [n, n] and, as a number, of n."""
  sides = value
  if isinstance(value, Mapping):
    sides = [value.get("height"), value.get("width")]
  elif number and not isinstance(value, Sequence):
    sides = [value, value]
  if not isinstance(sides, list) or len(sides) != 2 or sides[0] != sides[1]:
    raise _wrong(file, key, value, '{"height": n, "width": n} of one n')
  if not _positive(sides[0]):
    raise _wrong(file, key, value, '{"height": n, "width": n} of pixels')
  return sides[0]


def _positive(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _filter(said: Mapping[str, Any], usual: str) -> str:
  """Returns the option `filter` of resize."""
  name = said.get("interpolation") or FILTERS.get(said.get("resample", 0), "?")
  if not {"interpolation", "resample"} & {*said}:
    name = usual
  if name not in FILTERS.values():
    raise ValueError(
      f"images are resized by resample = {said.get('resample')!r}, interpolation = "
      f"{said.get('interpolation')!r}, expected one of {', '.join(FILTERS.values())}"
    )
  return name


def _normal(
  file: str, said: Mapping[str, Any], default: Mapping[str, Any]
) -> dict[str, tuple[float, ...]]:
  """Returns mean and std of `normalize`, which divides pixels by 255 first."""
  factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
  if not isinstance(factor, int | float) or not factor > 0:
    raise _wrong(file, "rescale_factor", factor, "a number above 0")
  unit = 1.0 if math.isclose(factor * 255, 1) else factor * 255
  out = {}
  for key, none in (("mean", 0.0), ("std", 1.0)):
    value = said.get(key, default[key]) if said.get("do_normalize", True) else none
    values = [value] * 3 if isinstance(value, int | float) else value
    numbers = isinstance(values, Sequence) and all(
      isinstance(x, int | float) and (x > 0 or key == "mean") for x in values
    )
    if not numbers or len(values) != 3:
      above = " above 0" * (key == "std")
      raise _wrong(file, f"image_{key}", value, f"three numbers{above}")
    out[key] = tuple(x / unit for x in values)
  return out


def _wrong(file: str, key: str, value: Any, expected: str) -> ValueError:
  return ValueError(f"{file}: {key} = {value!r}, expected {expected}: mend the file")


def tiled(config: ConfigDict) -> None:
  """Leaves nothing out of images of another size, which the patches tile."""
  steps = config.data.eval_transforms
  config.data.eval_transforms = type(steps)(
    (name, {k: v for k, v in options.items() if (name, k) != ("resize", "rest")})
    for name, options in steps
  )


def written(
  config: ConfigDict, library: str, card: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """Returns name -> JSON of what a library wants to know of images; {} if unknown.

  Args:
    config: with `normalize` in config.data.eval_transforms, or nothing is known.
    library: "hf" | "open_clip".
    card: the library's config of the model; open_clip's is returned with more in it.
  """
  named = {name: options for name, options in config.data.eval_transforms}
  if "normalize" not in named or "image" not in config.model.modalities:
    return {}
  resize = named.get("resize", {})
  crop, kind = resize.get("crop", 0.0), resize.get("filter", "bicubic")
  mean, std = (_floats(named["normalize"].get(k, (0.5,) * 3)) for k in ("mean", "std"))
  if library == "open_clip":
    mode = "shortest" if crop else "squash"
    said = dict(mean=mean, std=std, resize_mode=mode, interpolation=kind)
    if resize.get("rest"):
      card = _of_images(card, config.model.modalities.image.size[0] + resize["rest"])
    return {"open_clip_config.json": {**card, CARD: said}}
  made = config.model.modalities.image.size[0] + resize.get("rest", 0)
  whole = dict(height=made, width=made)
  resample = next(number for number, name in FILTERS.items() if name == kind)
  said = dict(
    image_processor_type="CLIPImageProcessor",
    image_mean=mean,
    image_std=std,
    do_center_crop=bool(crop),
    crop_size=whole,
    size=dict(shortest_edge=round(made / crop)) if crop else whole,
    resample=resample,
  )
  out: dict[str, dict[str, Any]] = {FILES[0]: said}
  if resize.get("rest"):
    out["config.json"] = _of_images(card, made)
  return out


def _of_images(card: Mapping[str, Any], made: int) -> dict[str, Any]:
  """Returns a config.json whose images are larger than what the patches tile."""
  for key in ("model_cfg", "vision_cfg", "vision_config"):
    if key in card:
      return {**card, key: _of_images(card[key], made)}
  return {**card, "image_size": made}


def _floats(values: Sequence[float]) -> list[float]:
  return [float(x) for x in values]
