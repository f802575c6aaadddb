"""Builds from a config what training, evaluation and the tools share."""

from collections.abc import Callable
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from input_pipeline.transforms import normalize
from model import catalogue, mel
from model.encoders import towers as towers_lib
from model.shapes import example_spec
from model.types import Batch
from sharding import mesh as mesh_lib
from sharding import placement, rules
from training import optimizer
from training import state as state_lib
from training import step as step_lib

# What the compiler is told of the train step, by platform (docs/performance.md). cuBLAS
# multiplies: it adds a bias and applies an activation in passing. Products that share
# weights, as modalities do, stay apart: their tokens would be copied side by side.
# The gradients of kernels are scattered whole: left to itself, the TPU compiler lets
# parts of those of the experts travel round by round, and waits (docs/scale.md).
COMPILER: dict[str, dict[str, bool | int]] = {
  "gpu": {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_dot_merger_threshold_mb": 0,
  },
  "tpu": {"xla_tpu_enable_windowed_einsum_for_reduce_scatter": False},
}
# Key -> the least number that can work, the most, and whether that can itself.
RANGES: dict[str, tuple[float, float, bool]] = {
  "log_every": (1, math.inf, False),
  "ema": (0, 1, True),  # of 1 the average stays as it began
  "checkpoint.every": (0, math.inf, False),
  "optimizer.lr": (0, math.inf, False),
  "optimizer.clip": (0, math.inf, False),
  "optimizer.weight_decay": (0, math.inf, False),
  "optimizer.b1": (0, 1, False),
  "optimizer.b2": (0, 1, False),
  "data.max_dropped": (0, 1, True),
}
# What it is told besides where slots travel in pieces, and the chips that cannot.
IN_BACKGROUND = {"xla_tpu_enable_async_all_to_all": True}
SYNCHRONOUS = ("TPU v5 lite", "TPU v5e")


@dataclasses.dataclass(frozen=True)
class Setup:
  """A config's parts: what `build` returns.

  Attributes:
    config: the whole config.
    mesh: every device of every host.
    towers: the encoders.
    objective: the training method.
    tx: the optimizer.
    lr: step -> learning rate.
  """

  config: ConfigDict
  mesh: Mesh
  towers: Any
  objective: Any
  tx: optax.GradientTransformation
  lr: Callable

  def batch_spec(self, batch_size: int | None = None, train: bool = False):
    """Returns the shapes and dtypes of a global batch, as the towers read it.

    Args:
      batch_size: that of the config by default.
      train: with the plans of what training packs.
    """
    return batch_spec(
      self.config, self.towers, batch_size or self.config.batch_size, train
    )

  def init(self, key: jax.Array) -> state_lib.TrainState:
    """Returns the state at step 0; pure, to be jitted or eval_shaped."""
    init_key, objective_key, run_key = jax.random.split(key, 3)
    # The forward pass is only traced: under jit, no parameter depends on it.
    size = self.config.batch_size // self.config.microbatches
    dummy = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.batch_spec(size))
    params = self.towers.init(init_key, dummy, train=False)["params"]
    own, objective_state = self.objective.init(
      objective_key, self.towers, self.batch_spec()
    )
    return state_lib.create(
      run_key,
      {"towers": params, "objective": own},
      objective_state,
      self.tx,
      ema=bool(self.config.ema),
      frozen=getattr(self.objective, "frozen", False),
    )

  def shardings(self, abstract: state_lib.TrainState):
    """Returns a tree of NamedSharding for a state of shapes."""
    return rules.specs(abstract, self.mesh, self.config.sharding.rules)

  def abstract_state(self) -> state_lib.TrainState:
    """Returns the state as jax.ShapeDtypeStruct with shardings; allocates nothing."""
    # The key is made in the trace too: a mesh of described devices can run nothing.
    abstract = jax.eval_shape(lambda: self.init(jax.random.key(self.config.seed)))
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      self.shardings(abstract),
    )

  def init_state(self) -> state_lib.TrainState:
    """Returns the state at step 0, each array made on the devices that hold it."""
    key = jax.random.key(self.config.seed)
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    return jax.jit(self.init, out_shardings=shardings)(key)

  def train_step(self) -> Any:
    """Returns the jitted step(state, batch) -> (state, metrics); donates the state."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    step = step_lib.make_train_step(
      self.config, self.towers, self.objective, self.tx, self.lr
    )
    return jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(shardings, None),
      compiler_options=self._compiler_options(),
    )

  def _compiler_options(self) -> dict[str, bool | int]:
    device, pieces = self.mesh.devices.flat[0], self.config.model.moe.pieces
    options = COMPILER.get(device.platform, {})
    if pieces == 1 or device.platform != "tpu":
      return options
    if device.device_kind in SYNCHRONOUS:
      raise ValueError(
        f"config.model.moe.pieces = {pieces} on {device.device_kind}: its exchanges "
        "cannot go on in the background, and pieces cost time. Set "
        "config.model.moe.pieces = 1."
      )
    return options | IN_BACKGROUND

  def put(self, batch) -> Batch:
    """Returns this process's rows as global arrays, without keys that nobody reads."""
    read = getattr(self.objective, "reads", ())
    names = (*self.config.model.modalities, "valid", "id", *read)
    keep = {
      k: v
      for k, v in batch.items()
      if re.sub(r"_(mask|pack|valid|affine)$", "", k) in names or k.startswith("label_")
    }
    return placement.put_batch(keep, self.mesh)


def batch_spec(config: ConfigDict, towers: Any, b: int, train: bool = False):
  """Returns the shapes and dtypes of a batch of b examples; see `Setup.batch_spec`."""
  spec = {}
  for name, m in config.model.modalities.items():
    shape, dtype = example_spec(m)
    spec[name] = jax.ShapeDtypeStruct((b, *shape), dtype)
    if m.stem != "patches":
      spec[f"{name}_mask"] = jax.ShapeDtypeStruct((b, m.length), jnp.bool_)
  for m in towers.modalities if train else ():
    if m.pack:
      if m.stem == "patches":
        spec[f"{m.name}_mask"] = jax.ShapeDtypeStruct((b, m.size[0]), jnp.bool_)
      spec[f"{m.name}_pack"] = jax.ShapeDtypeStruct((b, 2), jnp.int32)
  return spec


def routing_group(config: ConfigDict) -> int:
  """Returns the examples of a routing group; 1 without sparse layers."""
  moe = config.model.moe
  return moe.group if moe.every or moe.layers else 1


def _check_ranges(config: ConfigDict) -> None:
  for key, (least, most, itself) in RANGES.items():
    value = config
    for name in key.split("."):
      value = value[name]
    if not least <= value <= most or (value == most and not itself):
      end = (
        "" if most == math.inf else f" and {'at most' if itself else 'below'} {most:g}"
      )
      raise ValueError(f"config.{key} = {value}, expected at least {least:g}{end}")


def _check_views(config: ConfigDict, towers: Any, objective: Any) -> None:
  """Refuses views that are told of another normalising or log-mel than there is.

  Evaluation sees no views: it would be of other pixels or sounds than training.
  """
  sounds = {m.name: m.log_mel for m in towers.modalities if m.log_mel}
  given = [dict(o) for name, o in config.data.transforms if name == "normalize"]
  for modality, _, steps in getattr(objective, "seen", ()):
    for view in steps:
      kind = type(view).__module__.rpartition(".")[2]
      if isinstance(view, mel.LogMel) and modality in sounds:
        where, wanted = f"model.modalities.{modality}.log_mel", sounds[modality]
        keys = [f.name for f in dataclasses.fields(mel.LogMel)]
      elif getattr(view, "denormalises", False) and modality == "image" and given:
        where, wanted = "data.transforms: normalize", normalize.Transform(**given[-1])
        keys = ["mean", "std"]
      else:
        continue
      for key in keys:
        own, theirs = (np.asarray(getattr(x, key)) for x in (view, wanted))
        if not np.all(own == theirs):
          raise ValueError(
            f"config.objective.options.views: {kind}.{key} = {own.tolist()}, but "
            f"config.{where} has {theirs.tolist()}: give the view the same"
          )


def build(config: ConfigDict, devices=None) -> Setup:
  """Returns the parts of a config, checked against each other.

  Raises:
    ValueError: unknown names or keys, or sizes that do not fit; says which config key.
  """
  _check_ranges(config)
  mesh = mesh_lib.make(config.mesh, devices)
  mesh_lib.check_batch(
    config.batch_size, mesh, config.microbatches, routing_group(config)
  )
  towers = towers_lib.build(config.model)
  for m in towers.modalities:
    if m.pack:
      mesh_lib.check_batch(
        config.batch_size,
        mesh,
        config.microbatches,
        m.pack.group,
        f"config.model.modalities.{m.name}.pack.group",
      )
  options = dict(config.objective.options)
  objective = catalogue.load(
    "model.objectives", config.objective.name, "Objective", options
  )
  if config.frozen_from and not getattr(objective, "frozen", False):
    raise ValueError(
      f"config.frozen_from = {config.frozen_from!r}, but the objective keeps no frozen "
      'parameters: set config.objective.options.teacher = "frozen", or leave it empty'
    )
  _check_views(config, towers, objective)
  return Setup(
    config=config,
    mesh=mesh,
    towers=towers,
    objective=objective,
    tx=optimizer.build(config.optimizer, config.total_steps),
    lr=optimizer.schedule(config.optimizer, config.total_steps),
  )
