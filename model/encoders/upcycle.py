"""Sparse towers from a dense checkpoint, and more or fewer experts in sparse ones.

Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): every expert starts as a copy
of the dense MLP that it replaces. Its vision models renormalise a token's gates to sum
to 1, so that copies give what the MLP gave. Here they are not: k of e equal gates sum
to k / e. So the last layer of the copies, `down`, is multiplied by e / k. That is exact
only while the gates are equal: a router that grows sure of its choice lets the layer
give up to e / k times what the MLP gave.

Both functions are for the router token_choice. Expert choice takes the tokens of the
largest gates, of equal ones the earliest: most would get no expert. Soft experts read
mixtures of tokens, which no copy of an MLP maps to what it made of each.

Axis letters: e experts, k choices, w width, m hidden width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model.encoders import config as configs
from model.encoders import stacking
from model.layers.block import TrunkConfig
from model.moe.config import WHERE, MoeConfig
from model.types import Array, Params


def upcycle(
  params: Params, model: Mapping[str, Any], key: Array, noise: float = 0.0
) -> dict[str, Any]:
  """Returns the parameters of sparse Towers that start as the dense ones `params`.

  With noise = 0 the router is zero, every gate is 1 / e, and the outputs are those of
  the dense towers, to rounding, wherever no token is dropped and config.model.moe.noise
  adds nothing: in evaluation, and in training without it. All tokens then choose the
  same first k experts, so that nothing is dropped only if the capacity (while training
  `capacity`, else `capacity_eval`) is at least e / k, or the dispatch is "dropless".

  Noise spreads the tokens. It multiplies a token's MLP output by its k largest gates
  times e / k, which is from 1 to exp(r) for logits that span r = max - min. They are of
  standard deviation noise * |x|, where |x| is about sqrt(w): keep noise * sqrt(w) well
  below 1. The routing noise of training does the same with 1 / e for that deviation: it
  multiplies by 1.19 in the mean for 8 experts, k = 1, and by 1.07 for 32.

  Args:
    params: of dense Towers, scanned or not.
    model: `config.model` of the sparse ones; its `scan` decides the form returned.
    key: for the noise.
    noise: standard deviation of the routers' kernels.

  Raises:
    ValueError: a model that is not sparse or not token_choice, parameters that are
      sparse already, or trunks of another number, depth or width.
  """
  moe = target(model)
  _check_noise(noise)
  trunks = {
    "trunk" if model["shared_trunk"] else f"trunk_{m.name}": m.trunk
    for m in configs.modalities(model)
  }
  _check_trunks(params, list(trunks))
  new = stacking.unstack_layers(params)
  for i, (name, trunk) in enumerate(trunks.items()):
    _check_blocks(new[name], name, trunk)
    new[name] = _sparse_trunk(
      new[name], moe, trunk.depth, jax.random.fold_in(key, i), noise
    )
  return stacking.stack_layers(new) if model["scan"] else new


def resize_experts(
  params: Params,
  experts: int,
  key: Array,
  noise: float = 0.0,
  *,
  k: tuple[int, int] = (1, 1),
  keep: Sequence[int] = (),
  kept_mass: float = 1.0,
) -> dict[str, Any]:
  """Returns the parameters with `experts` experts in every sparse layer.

  To r times as many: expert i becomes the experts r * i to r * i + r - 1, with equal
  columns of the router, so that each has 1 / r of its gate. Outputs are kept, to
  rounding, in two cases. With r times the k, a token gets all copies of all its
  choices; nothing else changes, not even what is dropped. From k = 1 to a k of at most
  r, it gets k copies of its one choice, each with `down` times r / k: the first k until
  something tells the copies apart, so that dropping no more than before takes r / k
  times the capacity. Else the copies of a first choice would crowd out the second:
  refused. While training, another routing noise (its deviation is 1 / e) and other
  auxiliary losses apply.

  To fewer: those of `keep` stay, in its order, with their columns of the router. So the
  ratios between their gates are kept, and their order; the gates grow by 1 / (the sum
  of the token's gates of kept experts). A token that chose only kept experts gets its
  old output times kept_mass / that sum; others go to the best that is left. Every r-th
  with kept_mass = 1 / r undoes r times as many experts at k = 1.

  Noise tells copies apart. If it moves a token's logits by at most d, the gates change
  by factors from exp(-2d) to exp(2d), and only choices whose logits were closer than 2d
  change places.

  Args:
    params: any tree that holds sparse layers, scanned or not.
    experts: to have.
    key: for the noise.
    noise: standard deviation of what is added to the routers' kernels.
    k: `config.model.moe.k` before and after.
    keep: to fewer only: the experts that stay; () spreads them evenly, which keeps one
      of every set of copies.
    kept_mass: to fewer only: the factor of `down`, ideally the mean sum of the gates of
      kept experts: near 1 for a sure router, near experts / e for an even one.

  Raises:
    ValueError: no sparse layer, one of the soft router, or a number of experts, k,
      `keep` or `kept_mass` that cannot be.
  """
  _check_noise(noise)
  if not _holds_sparse(params):
    raise ValueError(
      "the parameters hold no sparse layer (router and experts side by side): there "
      "are no experts to count. `upcycle` makes a dense model sparse."
    )

  def resize(tree: Params, key: Array) -> dict[str, Any]:
    if not _is_sparse(tree):
      return {
        name: resize(sub, jax.random.fold_in(key, i)) if isinstance(sub, dict) else sub
        for i, (name, sub) in enumerate(sorted(tree.items()))
      }
    if set(tree["router"]) != {"kernel"}:
      raise ValueError(
        f"a router holds {sorted(tree['router'])}, expected ['kernel'], as "
        f"{WHERE}.router = 'token_choice' has it: experts of another cannot be counted."
      )
    kernel = tree["router"]["kernel"]
    if experts > kernel.shape[-1]:
      _refuse_keep(keep, kept_mass)
      source, gain = _grown(kernel.shape[-1], experts, k)
    else:
      source, gain = _kept(kernel.shape[-1], experts, k, keep), kept_mass
      if not 0 < kept_mass <= 1:
        raise ValueError(f"kept_mass = {kept_mass}, a part of 1: expected (0, 1].")
    at = jnp.asarray(source)
    router = jnp.take(kernel, at, axis=-1)
    router += noise * jax.random.normal(key, router.shape, router.dtype)
    return {"router": {"kernel": router}, "experts": _chosen(tree["experts"], at, gain)}

  return resize(params, key)


def target(model: Mapping[str, Any]) -> MoeConfig:
  """Returns the options of the sparse layers of `config.model`.

  Raises:
    ValueError: it has none, or of a router that has no place for copies of an MLP.
  """
  moe = configs.sparse(model)
  if moe is None:
    raise ValueError(
      f"{WHERE}.every = 0 and {WHERE}.layers = () describe a dense model, which has no "
      "experts to fill. Set one of them."
    )
  check_router(moe.router)
  return moe


def check_router(router: str) -> None:
  """Raises a ValueError for a router that has no place for copies of an MLP."""
  if router != "token_choice":
    raise ValueError(
      f"{WHERE}.router = {router!r} has no place for copies of an MLP: experts that "
      "take tokens by equal gates all take the earliest, and soft experts read "
      f"mixtures of tokens. Set {WHERE}.router = 'token_choice'."
    )


def _sparse_trunk(
  trunk: Params, moe: MoeConfig, depth: int, key: Array, noise: float
) -> dict[str, Any]:
  """Replaces the dense MLP of every sparse block of an unrolled trunk."""
  new = dict(trunk)
  for i in moe.blocks(depth):
    block = dict(new[f"block_{i:02d}"])
    mlp = block.pop("mlp")
    copies = jax.tree.map(lambda a: jnp.stack([a] * moe.experts), mlp)
    gain = moe.experts / moe.k
    shape = (mlp["up"]["kernel"].shape[0], moe.experts)
    kernel = noise * jax.random.normal(jax.random.fold_in(key, i), shape)
    block["moe"] = {"router": {"kernel": kernel}, "experts": _scaled(copies, gain)}
    new[f"block_{i:02d}"] = block
  return new


def _chosen(experts: Params, at: Array, gain: float) -> dict[str, Any]:
  """Takes the experts at indices `at`, which may repeat, with `down` times `gain`."""
  # The experts are the axis before the layer's own: a scan has one more in front.
  own = {"kernel": -3, "bias": -2}
  taken = {
    layer: {name: jnp.take(a, at, axis=own[name]) for name, a in parts.items()}
    for layer, parts in experts.items()
  }
  return _scaled(taken, gain)


def _scaled(experts: Params, gain: float) -> dict[str, Any]:
  # Nothing but `down` is linear in the output.
  return {**experts, "down": jax.tree.map(lambda a: a * gain, experts["down"])}


def _is_sparse(tree: Any) -> bool:
  return isinstance(tree, dict) and {"router", "experts"} <= set(tree)


def _holds_sparse(tree: Any) -> bool:
  if not isinstance(tree, dict):
    return False
  return _is_sparse(tree) or any(_holds_sparse(sub) for sub in tree.values())


def _grown(e: int, experts: int, k: tuple[int, int]) -> tuple[list[int], float]:
  """Returns the expert that each of more `experts` copies, and the factor of `down`."""
  ratio, rest = divmod(experts, e)
  if rest:
    raise ValueError(
      f"{experts} experts are not a multiple of the checkpoint's {e} ({experts} % {e} "
      f"= {rest}): some would have more copies than others, and more of the gates. Set "
      f"{WHERE}.experts to {e * ratio} or {e * (ratio + 1)}."
    )
  before, after = k
  if after != ratio * before and (before != 1 or not 1 <= after <= ratio):
    also = f" or 1 to {ratio}" if before == 1 else ""
    raise ValueError(
      f"{WHERE}.k = {after} after {before}, with {experts} / {e} = {ratio} copies of "
      "each expert: a token's first choice and its copies would not leave the others "
      f"their place. Set {WHERE}.k = {ratio} * {before} = {ratio * before}{also}."
    )
  return [i // ratio for i in range(experts)], ratio * before / after


def _kept(e: int, experts: int, k: tuple[int, int], keep: Sequence[int]) -> list[int]:
  """Returns which of `e` experts stay if there are to be `experts`."""
  if not 1 <= experts < e:
    raise ValueError(
      f"{experts} experts, and the checkpoint has {e}: expected fewer, down to 1, or a "
      f"multiple, such as {2 * e} ({WHERE}.experts)."
    )
  if k[0] != k[1] or k[0] > experts:
    raise ValueError(
      f"{WHERE}.k = {k[1]} after {k[0]}, with {experts} of {e} experts kept: expected "
      f"the same k, of at most {experts}."
    )
  keep = list(keep) or [i * e // experts for i in range(experts)]
  if len(set(keep) & {*range(e)}) != experts or len(keep) != experts:
    raise ValueError(
      f"keep = {keep}, expected {experts} different experts ({WHERE}.experts) from 0 "
      f"to {e - 1}."
    )
  return keep


def _refuse_keep(keep: Sequence[int], kept_mass: float) -> None:
  if keep or kept_mass != 1:
    raise ValueError(
      f"keep = {list(keep)} and kept_mass = {kept_mass} are for fewer experts than the "
      "checkpoint has; to more, all stay."
    )


def _check_noise(noise: float) -> None:
  if noise < 0:
    raise ValueError(f"noise = {noise}, a standard deviation: expected 0 or more.")


def _check_trunks(params: Params, wanted: Sequence[str]) -> None:
  found = sorted(name for name in params if name.split("_")[0] == "trunk")
  if set(wanted) <= set(found):
    return
  shared = "trunk" in wanted
  if shared and found:
    why = (
      "Own trunks cannot become a shared one: their attention and norms differ, and "
      "those of one would have to serve all modalities. Start from a dense model with "
      "config.model.shared_trunk = True."
    )
  elif "trunk" in found:
    why = "Set config.model.shared_trunk = True, as the dense model has it."
  else:
    why = f"There is nothing to copy for {', '.join(sorted({*wanted} - {*found}))}."
  raise ValueError(
    f"the parameters hold {', '.join(found) or 'no trunk'}, expected "
    f"{', '.join(wanted)} (config.model.shared_trunk = {shared}). {why}"
  )


def _check_blocks(trunk: Params, name: str, wanted: TrunkConfig) -> None:
  blocks = sorted(b for b in trunk if b.startswith("block_"))
  if len(blocks) != wanted.depth:
    raise ValueError(
      f"{name} has {len(blocks)} blocks, expected config.model.trunk.depth = "
      f"{wanted.depth}: a block more or less is another function. Set it to "
      f"{len(blocks)}."
    )
  sparse = [b for b in blocks if "moe" in trunk[b]]
  if sparse:
    raise ValueError(
      f"{name} is sparse already in {', '.join(sparse)}: expected a dense model. "
      "`resize_experts` changes the number of its experts."
    )
  got = trunk[blocks[0]]["mlp"]["up"]["kernel"].shape
  if got != (wanted.width, wanted.mlp):
    raise ValueError(
      f"{name} has MLPs of width {got[0]} and hidden width {got[1]}, expected "
      f"config.model.trunk.width = {wanted.width} and .mlp = {wanted.mlp}: an expert "
      "is a copy of the MLP."
    )
