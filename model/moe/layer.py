"""The sparse MLP of a transformer block: route, dispatch, experts, auxiliary terms.

The tokens of all modalities meet only here (LIMoE, arXiv 2206.02770): one router and
one pool of experts serve them all; the auxiliary losses keep each modality balanced.

Axis letters: b batch, n tokens of an example (all modalities, concatenated), g group,
s tokens of a group, e experts, c capacity, k choices, w width, m hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
import functools

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from model import catalogue
from model.layers import constrain
from model.moe import diagnostics, dispatch, dropless
from model.moe.config import ROUTERS, MoeConfig
from model.moe.router import Chosen, Routing
from model.types import Array, Metrics

Modalities = tuple[tuple[str, int], ...]  # (name, tokens), in the order of the array


class MoeMlp(nn.Module):
  """A transformer block's MLP as a sparse mixture of experts.

  Attributes:
    config: routing, capacity and losses.
    mlp: hidden width of each expert, m.
    dtype: of the experts' matmuls and of the result; the router is f32 always.
    activation: between the two layers of an expert.
    example: tokens of an example with all modalities that share the layer; 0: those
      that come.

  Parameters (f32): router/kernel [w, e], or as its file in model/moe/routers says;
  experts/up/kernel [e, w, m], experts/up/bias [e, m]; experts/down/kernel [e, m, w],
  experts/down/bias [e, w].

  Random streams: "router", in training with noise only.

  Groups are `config.group` consecutive examples; within one, the order of the array is
  example by example. The chosen experts, if the router chooses, are sown into
  "intermediates" as `expert_index` int32[b, n, k] (-1 for none, such as padding's),
  `expert_served` bool[b, n, k] and `expert_gate` f32[b, n, k], without noise.
  """

  config: MoeConfig
  mlp: int
  dtype: jnp.dtype = jnp.float32
  activation: Callable[[Array], Array] = nn.gelu  # the tanh form, as in the dense MLP
  example: int = 0

  @nn.compact
  def __call__(
    self, x: Array, mask: Array, modality: Modalities, train: bool = False
  ) -> tuple[Array, Metrics]:
    """Applies to each token its experts, times their gates, without the residual.

    Args:
      x: [b, n, w], all modalities present, concatenated along n.
      mask: bool[b, n], True for a real token; padding takes no slot and is not counted.
      modality: static (name, tokens) of each modality along n.
      train: noise and training capacity, or neither.

    Returns:
      y in dtype [b, n, w], exactly 0 for a token that no expert serves; and one layer's
      `losses/moe_<name>` f32[], weighted, with its metrics (see `diagnostics`). While
      initialising nothing is routed: y is x, and there are no terms.

    Raises:
      ValueError: shapes that disagree, a batch that is not whole groups on every
        device, experts that the mesh cannot split, or a device without dropless kernel.
    """
    c = self.config
    b, n, w = x.shape
    self._check(x, mask, modality)
    kind = catalogue.find(ROUTERS, c.router, "Router")
    router = kind(c, self.example, name="router")
    experts = self._experts()
    if self.is_initializing():  # any number of examples will do: nothing is routed
      router.logits(x[:1])
      experts.weights(w)
      return x.astype(self.dtype), {}

    g = c.groups(b, dispatch.batch_shards())
    key = self.make_rng("router") if train and c.noise else None
    # Whatever padding holds, NaN included, meets no matrix and no gradient.
    x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
    done = []
    for part in _parts(modality if router.mixes else (("", n),)):
      rows, real = x[:, part].reshape(g, -1, w), mask[:, part].reshape(g, -1)
      routing = router(rows, real, train=train, key=key)
      y = self._dispatch(experts, rows.astype(self.dtype), routing)
      done.append((y, routing.replace(routes=None)))
    y, routing = jax.tree.map(lambda *parts: _join(parts, b), *done)
    self._sow(routing, (b, n, -1))
    mask = mask.reshape(g, -1)
    masks = {name: mask & here for name, here in _where(modality, c.group)}
    aux = diagnostics.losses(c, routing, mask, masks)
    aux |= diagnostics.metrics(routing, mask, masks)
    return y.reshape(b, n, w), aux

  def _experts(self) -> "Experts":
    return Experts(
      experts=self.config.experts,
      mlp=self.mlp,
      identical_init=self.config.identical_init,
      dtype=self.dtype,
      name="experts",
    )

  def _dispatch(self, experts: "Experts", x: Array, routing: Routing) -> Array:
    c, routes = self.config, routing.routes
    weights = experts.weights(x.shape[-1])
    if isinstance(routes, Chosen):
      return dropless.apply(weights, self.activation, x, routes, c.dropless_kernel)
    mlp = functools.partial(_mlp, weights, self.activation)
    return dispatch.apply(mlp, x, routes, c.dispatch, c.pieces)

  def _sow(self, routing: Routing, shape: tuple[int, ...]) -> None:
    expert, load = routing.expert, routing.load
    if expert is None:
      return
    chosen = jnp.maximum(expert, 0)
    served = jnp.take_along_axis(load, chosen, axis=-1) > 0
    gate = jnp.take_along_axis(routing.gates, chosen, axis=-1)
    self.sow("intermediates", "expert_index", expert.reshape(shape))
    self.sow("intermediates", "expert_gate", gate.reshape(shape))
    self.sow("intermediates", "expert_served", (served & (expert >= 0)).reshape(shape))

  def _check(self, x: Array, mask: Array, modality: Modalities) -> None:
    b, n, _ = x.shape
    if mask.shape != (b, n):
      raise ValueError(
        f"mask has shape {mask.shape}, expected {(b, n)}: one entry per token of x "
        f"{x.shape}."
      )
    if sum(count for _, count in modality) != n:
      parts = " + ".join(f"{name} {count}" for name, count in modality)
      raise ValueError(
        f"x has {n} tokens per example, expected {parts} = "
        f"{sum(count for _, count in modality)}."
      )
    self.config.check_mesh(dispatch.mesh_axes().get("expert", 1))


def _parts(modality: Modalities) -> Iterator[slice]:
  """Yields each modality's tokens along n."""
  start = 0
  for _, count in modality:
    yield slice(start, start + count)
    start += count


def _join(parts: Sequence[Array], b: int) -> Array:
  """Joins the modalities' [g, s, ...] of b examples, token behind token, in one."""
  if len(parts) == 1:
    return parts[0]
  g = parts[0].shape[0]
  by_example = [x.reshape(b, -1, *x.shape[2:]) for x in parts]
  joined = jnp.concatenate(by_example, axis=1)
  return joined.reshape(g, -1, *joined.shape[2:])


def _where(modality: Modalities, group: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, bool[1, s]): which tokens of every group are of the modality."""
  kinds = np.repeat(np.arange(len(modality)), [count for _, count in modality])
  for i, (name, _) in enumerate(modality):
    yield name, np.tile(kinds == i, group)[None]


class Experts(nn.Module):
  """The parameters of the experts' MLPs, stacked on a leading axis.

  Attributes:
    experts: e.
    mlp: hidden width, m.
    identical_init: whether all experts start from the same weights.
    dtype: of what is returned; the parameters are f32.
  """

  experts: int
  mlp: int
  identical_init: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self) -> None:
    """Names the parameters."""
    stack = self.experts, self.identical_init, self.dtype
    self.up, self.down = Stack(*stack), Stack(*stack)

  def weights(self, width: int) -> tuple[dropless.Linear, dropless.Linear]:
    """Returns ([e, w, m], [e, m]) and ([e, m, w], [e, w]): kernels and biases."""
    up = self.up(width, self.mlp, (None, "tensor"))
    return up, self.down(self.mlp, width, ("tensor", None))


def _mlp(
  weights: tuple[dropless.Linear, dropless.Linear],
  activation: Callable[[Array], Array],
  x: Array,
) -> Array:
  """Applies expert i to x[i]: [e, r, w] -> [e, r, w]."""
  up, down = weights
  return _linear(activation(_linear(x, *up)), *down)


def _linear(x: Array, kernel: Array, bias: Array) -> Array:
  product = jnp.einsum("eri,eio->ero", x, kernel)
  return checkpoint_name(product, dispatch.PRODUCT) + bias[:, None, :]


class Stack(nn.Module):
  """The parameters of one linear layer per expert.

  Attributes:
    experts: e.
    identical_init: whether all experts start from the same weights.
    dtype: of what is returned; the parameters are f32.
  """

  experts: int
  identical_init: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, fan_in: int, fan_out: int, axes: tuple[str | None, str | None]
  ) -> tuple[Array, Array]:
    """Returns kernel [e, i, o], of which `axes` may split i and o, and bias [e, o]."""
    glorot, small = nn.initializers.xavier_uniform(), nn.initializers.normal(1e-6)
    kernel = self.param("kernel", self._stacked(glorot), (fan_in, fan_out))
    bias = self.param("bias", self._stacked(small), (fan_out,))
    kernel = constrain.gathered(kernel.astype(self.dtype), "expert", *axes)
    return kernel, bias.astype(self.dtype)

  def _stacked(self, init: Callable) -> Callable:
    def stacked(key: Array, shape: tuple[int, ...]) -> Array:
      if self.identical_init:
        return jnp.tile(init(key, shape)[None], (self.experts, *[1] * len(shape)))
      return jax.vmap(lambda key: init(key, shape))(jax.random.split(key, self.experts))

    return stacked
