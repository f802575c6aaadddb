"""The one state of a run: everything that a resumed run needs, beside the data's."""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import optax

from model.types import Array, Params, State


@struct.dataclass
class TrainState:
  """What one step turns into the next.

  Attributes:
    step: i32[], steps taken.
    params: {"towers": ..., "objective": ...}, f32.
    opt_state: the optimizer's.
    objective_state: queues, banks, ...; {} for most objectives.
    ema: a moving average of `params`, or {} where `config.ema` is 0.
    rng: u32[2], the run's key; each step folds its number into it.
    frozen: a copy of the first `params`, for objectives that ask for it; else {}.
  """

  step: Array
  params: Params
  opt_state: optax.OptState
  objective_state: State
  ema: Params
  rng: Array
  frozen: Params = struct.field(default_factory=dict)

  @property
  def eval_params(self) -> Params:
    """The parameters to evaluate: the moving average where there is one."""
    return self.ema or self.params

  def starting_from(self, params: Params) -> "TrainState":
    """Returns this state with other first parameters, and their copies renewed."""
    ema, frozen = (_copy(params) if kept else {} for kept in (self.ema, self.frozen))
    return dataclasses.replace(self, params=params, ema=ema, frozen=frozen)


def create(
  key: Array,
  params: Params,
  objective_state: State,
  tx,
  ema: bool,
  frozen: bool = False,
) -> TrainState:
  """Returns the state at step 0 for initialised `params`; pure, to be jitted.

  Args:
    key: a key array of jax.random.key; the run's randomness.
    params: {"towers": ..., "objective": ...}.
    objective_state: the objective's first state.
    tx: optax.GradientTransformation over `params`.
    ema: whether to keep a moving average, which starts as a copy.
    frozen: whether to keep a copy of the first parameters.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    objective_state=objective_state,
    ema=_copy(params) if ema else {},
    rng=jax.random.key_data(key),
    frozen=_copy(params) if frozen else {},
  )


def _copy(params: Params) -> Params:
  # Arrays of their own: a step is given the state's buffers to write into.
  return jax.tree.map(jnp.copy, params)
