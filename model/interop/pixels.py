"""What is done to images before a model sees them: other libraries' files <-> ours.

Ours are the transforms of config.data.eval_transforms: decode_image, resize, normalize.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

# Pillow's numbers, as preprocessor_config.json has them.
FILTERS = {2: "bilinear", 3: "bicubic"}
FILES = ("preprocessor_config.json", "processor_config.json")  # of transformers
PEER = dict(hf="transformers", open_clip="torchvision")  # whose resizing it is

Steps = tuple[tuple[str, dict[str, Any]], ...]


def steps(
  default: Mapping[str, Any],
  library: str,
  files: Mapping[str, Mapping[str, Any]],
  given: Mapping[str, Any],
  side: int,
) -> Steps:
  """Returns the transforms of images that a checkpoint asks for.

  Args:
    default: mean, std and crop of its architecture, where nothing is said.
    library: "hf" | "open_clip" | ...
    files: those of `FILES` that lie beside it.
    given: its config.json.
    side: pixels of the model's images.

  Raises:
    ValueError: an interpolation or a way of resizing that `resize` does not have.
  """
  said = dict(next((f for f in (files.get(n) for n in FILES) if f), {}))
  said = dict(said.get("image_processor", said))
  said = {k.removeprefix("image_"): v for k, v in said.items()}
  said |= given.get("preprocess_cfg") or {}
  resize: dict[str, Any] = dict(crop=_crop(said, default["crop"], side))
  name = said.get("interpolation") or FILTERS.get(said.get("resample", 3), "?")
  if name not in FILTERS.values():
    raise ValueError(
      f"images are resized by resample = {said.get('resample')!r}, interpolation = "
      f"{said.get('interpolation')!r}, expected one of {', '.join(FILTERS.values())}"
    )
  resize |= dict(filter=name) if name != "bicubic" else {}
  resize |= dict(as_in=PEER[library]) if library in PEER else {}
  pixels = {k: tuple(said.get(k) or default[k]) for k in ("mean", "std")}
  return (("decode_image", {}), ("resize", resize), ("normalize", pixels))


def _crop(said: Mapping[str, Any], default: float, side: int) -> float:
  """Returns the option `crop` of resize."""
  mode = said.get("resize_mode")
  if mode is not None:  # open_clip
    if mode not in ("shortest", "squash"):
      raise ValueError(f"resize_mode = {mode!r}, expected 'shortest' or 'squash'")
    return float(mode == "shortest")
  size = said.get("size")
  shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
  if "do_center_crop" in said and not said["do_center_crop"]:
    return 0.0
  if said.get("do_center_crop") and shortest:
    cut = said.get("crop_size", side)
    cut = cut["height"] if isinstance(cut, Mapping) else cut
    return cut / shortest
  return default if "do_center_crop" not in said else 1.0


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
    return {"open_clip_config.json": {**card, "preprocess_cfg": said}}
  side = config.model.modalities.image.size[0]
  whole = dict(height=side, width=side)
  resample = next(number for number, name in FILTERS.items() if name == kind)
  said = dict(
    image_processor_type="CLIPImageProcessor",
    image_mean=mean,
    image_std=std,
    do_center_crop=bool(crop),
    crop_size=whole,
    size=dict(shortest_edge=round(side / crop)) if crop else whole,
    resample=resample,
  )
  return {"preprocessor_config.json": said}


def _floats(values: Sequence[float]) -> list[float]:
  return [float(x) for x in values]
