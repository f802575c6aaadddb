"""Whole checkpoints of other libraries to our config and parameters, and back."""

from collections.abc import Mapping, Sequence
import copy
from typing import Any

from flax import traverse_util
import jax
from ml_collections import ConfigDict
import numpy as np

from model.encoders import config as configs
from model.encoders import stacking, towers
from model.interop import big_vision, describe, hf, hf_towers, open_clip, rules
from model.interop.describe import Format
from model.interop.rules import Arrays, Read

FORMATS = (
  hf.CLIP,
  hf.SIGLIP,
  hf_towers.DINOV2,
  hf_towers.BERT,
  open_clip.CLIP,
  open_clip.SIGMOID,
  open_clip.SIGLIP,
  big_vision.SIGLIP,
  big_vision.LIT,
)
LIBRARIES = tuple(dict.fromkeys(f.library for f in FORMATS))
BUFFERS = ("position_ids", "attn_mask")  # constants that older checkpoints hold


def recognise(state: Arrays, given: Mapping[str, Any]) -> Format:
  """Returns the format of a checkpoint, by its names.

  Args:
    state: their name -> array.
    given: its config.json, {} without one: for the message.

  Raises:
    ValueError: none that is known.
  """
  fit = [kind for kind in FORMATS if {*kind.marks} <= {*kind.normal(state)}]
  if fit:
    return max(fit, key=lambda kind: len(kind.marks))
  said = given.get("architectures") or given.get("model_type")
  known = ", ".join(dict.fromkeys(f"{f.library}'s {f.architecture}" for f in FORMATS))
  raise ValueError(
    f"the checkpoint is of none of the architectures {known}. It holds "
    f"{len(state)} arrays, such as {', '.join(sorted(state)[:4])}"
    + (f"; its config.json says {said}" if said else "")
  )


def load(
  state: Arrays, given: Mapping[str, Any] | None = None, *, partial: bool = False
) -> tuple[ConfigDict, dict[str, Any], Read]:
  """Reads a checkpoint of another library.

  Args:
    state: their name -> array of floats.
    given: its config.json, which says what shapes do not: heads, activation, epsilon.
    partial: whether towers with gaps are read too, and without arrays that they have no
      place for.

  Returns:
    our config, with everything that the checkpoint does not say at its default; the
    parameters {"towers": ..., "objective": ...}, f32, of config.model.scan = False; and
    what was read.

  Raises:
    ValueError: another architecture, missing arrays of the towers, arrays that they
      have no place for, or shapes and a config that contradict each other.
  """
  given = given or {}
  kind = recognise(state, given)
  state = {k: v for k, v in kind.normal(state).items() if not k.endswith(BUFFERS)}
  config = kind.describe(state, given)
  image, text = describe.towers(config.model, kind)
  shapes = _shapes(config.model)
  found = rules.read(kind.rules(image, text), state, shapes)
  gaps = [name for name in found.missing if not name.startswith("logit_")]
  if gaps and not partial:
    raise ValueError(
      f"the checkpoint lacks {len(gaps)} arrays of a {kind.architecture}: {_some(gaps)}"
    )
  # Each may change what the towers compute.
  odd = [name for name in found.unused if not name.startswith(kind.harmless)]
  if odd and not partial:
    raise ValueError(
      f"the checkpoint holds {len(odd)} arrays that our towers have no place for, and "
      f"that may change what they compute: {_some(odd)}; --partial reads the others"
    )
  return config, traverse_util.unflatten_dict(found.params, sep="/"), found


def save(
  config: ConfigDict, params: Mapping[str, Any], library: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Writes our parameters as another library's; returns (state, config.json).

  A bias of the patches, which CLIP has not, is added to their positions: the same
  function, to rounding.

  Args:
    config: of the model.
    params: {"towers": ..., "objective": ...}, scanned or not.
    library: one of LIBRARIES.

  Raises:
    ValueError: the library has no architecture for the model; says which keys of the
      config keep it from that.
  """
  known = [f for f in FORMATS if f.library == library]
  if not known:
    raise ValueError(f"format {library!r}, expected one of {', '.join(LIBRARIES)}")
  kind = _nearest(known, config.model, params.get("objective", {}))
  model = copy.deepcopy(config.model)
  flat = _flat(stacking.unstack_layers(dict(params)))
  if kind.image and not kind.image["stem_bias"] and "image" in model.modalities:
    flat = _folded(flat)
    model.modalities.image.stem_bias = False
  image, text = describe.towers(model, kind)
  state = rules.write(kind.rules(image, text), flat)
  if kind.stacked and model.scan:
    state = kind.stacked(state)
  return state, kind.card(image, text, model.embed_dim)


def _nearest(
  known: Sequence[Format], model: Mapping[str, Any], losses: Mapping[str, Any]
) -> Format:
  """Returns the architecture that is most like the model: it says what does not fit.

  Raises:
    ValueError: none has its modalities.
  """
  own = {m.name: m.pool for m in configs.modalities(model)}
  fit = [kind for kind in known if {*kind.modalities} == {*own}]
  if not fit:
    sets = dict.fromkeys(" and ".join(kind.modalities) for kind in known)
    raise ValueError(
      f"{known[0].library} has no architecture for config.model.modalities = "
      f"{sorted(own)}, expected {', or '.join(sets)}"
    )
  pool = own.get("image")

  def unlike(kind: Format) -> tuple[bool, bool]:
    image = kind.image or {}
    other = bool(losses) and kind.loss not in losses
    return image.get("pool", pool) != pool, other

  return min(fit, key=unlike)


def _folded(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Moves the bias of the patches into their learned positions, if there are any."""
  flat = dict(flat)
  position = "towers/stem_image/position"
  bias = flat.pop("towers/stem_image/embed/bias", None)
  if position in flat and bias is not None:
    flat[position] = flat[position] + bias[None]
  return flat


def _shapes(model: ConfigDict) -> dict[str, tuple[int, ...]]:
  """Returns our path -> shape; of the objective, only scalars can come along."""
  net = towers.build(model)
  tree = jax.eval_shape(net.init, jax.random.key(0), configs.example(model))
  shapes = {k: v.shape for k, v in _flat({"towers": tree["params"]}).items()}
  scalars = ("infonce/log_scale", "siglip/log_scale", "siglip/bias")
  return shapes | {f"objective/{name}": () for name in scalars}


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[: rules.SHOWN]) + ", ..." * (len(names) > rules.SHOWN)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")
