"""The sparse MLP of a transformer block: route, dispatch, experts, auxiliary terms.

The tokens of all modalities meet only here (LIMoE, arXiv 2206.02770): one router and
one pool of experts serve them all; the auxiliary losses keep each modality balanced.

Axis letters: b batch, n tokens of an example (all modalities, concatenated), g group,
s tokens of a group, e experts, c capacity, k choices, w width, m hidden width.
"""

from collections.abc import Callable, Iterator

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.moe import diagnostics, dispatch, router
from model.moe.config import MoeConfig
from model.types import Array, Metrics

Modalities = tuple[tuple[str, int], ...]  # (name, tokens), in the order of the array


class MoeMlp(nn.Module):
  """A transformer block's MLP as a sparse mixture of experts.

  Attributes:
    config: routing, capacity and losses.
    mlp: hidden width of each expert, m.
    dtype: of the experts' matmuls and of the result; the router is f32 always.
    activation: between the two layers of an expert.

  Parameters (f32): router/kernel [w, e]; experts/up/kernel [e, w, m], experts/up/bias
  [e, m]; experts/down/kernel [e, m, w], experts/down/bias [e, w].

  Random streams: "router", in training with noise only.
  """

  config: MoeConfig
  mlp: int
  dtype: jnp.dtype = jnp.float32
  activation: Callable[[Array], Array] = nn.gelu  # the tanh form, as in the dense MLP

  @nn.compact
  def __call__(
    self, x: Array, mask: Array, modality: Modalities, train: bool = False
  ) -> tuple[Array, Metrics]:
    """Applies to each token its experts, times their gates, without the residual.

    Groups are `config.group` consecutive examples; within one, the order of the array
    is example by example. The chosen experts are sown into "intermediates" as
    `expert_index` int32[b, n, k] (-1 for padding) and `expert_served` bool[b, n, k].

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
        device, or experts that the mesh cannot split.
    """
    c = self.config
    b, n, w = x.shape
    self._check(x, mask, modality)
    gate = nn.Dense(
      c.experts,
      use_bias=False,
      dtype=jnp.float32,
      precision=jax.lax.Precision.HIGHEST,  # or accelerators round the inputs to bf16
      name="router",
    )
    experts = Experts(
      experts=c.experts,
      mlp=self.mlp,
      identical_init=c.identical_init,
      dtype=self.dtype,
      activation=self.activation,
      name="experts",
    )
    if self.is_initializing():  # any number of examples will do: nothing is routed
      gate(x[:1].astype(jnp.float32))
      experts(jnp.zeros((c.experts, 1, w), self.dtype))
      return x.astype(self.dtype), {}

    g = c.groups(b, dispatch.batch_shards())
    s = b * n // g
    mask = mask.reshape(g, s)
    # Whatever padding holds, NaN included, meets no matrix and no gradient.
    x = jnp.where(mask[..., None], x.reshape(g, s, w), jnp.zeros((), x.dtype))
    logits = gate(x.astype(jnp.float32))
    noisy = logits
    if train and c.noise:
      noisy = router.noisy(logits, self.make_rng("router"), c.noise / c.experts)
    factor = c.capacity if train else c.capacity_eval
    slots = router.capacity(s, c.k, factor, c.experts)
    gates = jax.nn.softmax(noisy)
    routes, expert = router.route(gates, mask, k=c.k, slots=slots, priority=c.priority)
    y = dispatch.apply(experts, x.astype(self.dtype), routes, c.dispatch)

    served = routes.slot < c.experts * slots
    self._sow(jnp.where(mask[..., None], expert, -1), served, (b, n, c.k))
    masks = {name: mask & here for name, here in _where(modality, c.group)}
    aux = diagnostics.losses(c, logits, noisy, mask, masks)
    aux |= diagnostics.metrics(logits, expert, served, mask, masks)
    return y.reshape(b, n, w), aux

  def _sow(self, expert: Array, served: Array, shape: tuple[int, ...]) -> None:
    self.sow("intermediates", "expert_index", expert.reshape(shape))
    self.sow("intermediates", "expert_served", served.reshape(shape))

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


def _where(modality: Modalities, group: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, bool[1, s]): which tokens of every group are of the modality."""
  kinds = np.repeat(np.arange(len(modality)), [count for _, count in modality])
  for i, (name, _) in enumerate(modality):
    yield name, np.tile(kinds == i, group)[None]


class Experts(nn.Module):
  """The experts' MLPs, stacked on a leading axis: [e, r, w] -> [e, r, w].

  Attributes:
    experts: e.
    mlp: hidden width, m.
    identical_init: whether all experts start from the same weights.
    dtype: of the matmuls and of the result.
    activation: between the two layers.
  """

  experts: int
  mlp: int
  identical_init: bool = False
  dtype: jnp.dtype = jnp.float32
  activation: Callable[[Array], Array] = nn.gelu

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Applies expert i to x[i]; x is [e, r, w]."""
    stack = (self.experts, self.identical_init, self.dtype)
    h = self.activation(Stack(self.mlp, *stack, name="up")(x))
    return Stack(x.shape[-1], *stack, name="down")(h)


class Stack(nn.Module):
  """One linear layer per expert: [e, r, i] -> [e, r, o].

  Attributes:
    features: output width, o.
    experts: e.
    identical_init: whether all experts start from the same weights.
    dtype: of the matmul and of the result.
  """

  features: int
  experts: int
  identical_init: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Applies layer i to x[i]; x is [e, r, i]."""
    kernel = self.param(
      "kernel", self._stacked(nn.initializers.xavier_uniform()), (x.shape[-1],)
    )
    bias = self.param("bias", self._stacked(nn.initializers.normal(1e-6)), ())
    y = jnp.einsum("eri,eio->ero", x, kernel.astype(self.dtype))
    return y + bias.astype(self.dtype)[:, None, :]

  def _stacked(self, init: Callable) -> Callable:
    def stacked(key: Array, shape: tuple[int, ...]) -> Array:
      shape = (*shape, self.features)
      if self.identical_init:
        return jnp.tile(init(key, shape)[None], (self.experts, *[1] * len(shape)))
      return jax.vmap(lambda key: init(key, shape))(jax.random.split(key, self.experts))

    return stacked
