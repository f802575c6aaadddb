"""Towers: every modality of a batch becomes a vector of the shared space.

raw array -> stem -> trunk (shared: LIMoE, arXiv 2206.02770; or own: CLIP, 2103.00020)
-> pool -> projection, plus a linear map of plain descriptors where a path is wide.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from model import catalogue
from model.encoders import config as configs
from model.encoders import places
from model.encoders import trunk as trunk_lib
from model.encoders.config import Modality
from model.layers import constrain, stem, wide
from model.layers.block import Masks, Streams
from model.layers.fused import Sum
from model.layers.packing import Packed
from model.layers.pool import Pool
from model.moe.config import ROUTERS, MoeConfig
from model.types import Array, Batch, Encoded, Metrics

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(model: Mapping[str, Any]) -> "Towers":
  """Returns the module that `config.model` describes.

  Raises:
    ValueError: an unknown key, or values that contradict each other.
  """
  known = ["embed_dim", "shared_trunk", "trunk", "moe", "modalities"]
  known += ["scan", "remat", "dtype"]
  for key in model:
    if key not in known:
      raise ValueError(
        f"unknown key config.model.{key}: {catalogue.near_misses(key, known)}"
      )
  if model["dtype"] not in DTYPES:
    raise ValueError(
      f"config.model.dtype = {model['dtype']!r}: "
      f"{catalogue.near_misses(str(model['dtype']), list(DTYPES))}"
    )
  trunk_lib.rematerialised(model["remat"], model["scan"])  # raises early
  modalities = configs.modalities(model)
  if model["scan"] and any(m.trunk.attention == "triton" for m in modalities):
    raise ValueError(
      "config.model.scan with config.model.trunk.attention = 'triton', which leaves "
      "each block's last sum to the next one: set config.model.scan = False, or "
      "config.model.trunk.attention = 'cudnn'"
    )
  moe = configs.sparse(model)
  if moe:
    for m in modalities:
      moe.blocks(m.trunk.depth)  # raises early
      if m.pack and catalogue.find(ROUTERS, moe.router, "Router").mixes:
        raise ValueError(
          f"config.model.modalities.{m.name}.pack puts tokens of several examples into "
          f"a row, which config.model.moe.router = {moe.router!r} would mix: route by "
          f"'token_choice', or set config.model.modalities.{m.name}.pack.tokens = 0"
        )
  return Towers(
    modalities=modalities,
    embed_dim=model["embed_dim"],
    shared=model["shared_trunk"],
    moe=moe,
    scan=model["scan"],
    remat=model["remat"],
    dtype=DTYPES[model["dtype"]],
  )


class Towers(nn.Module):
  """All encoders of a model, as one module with one parameter tree.

  Attributes:
    modalities: in alphabetical order.
    embed_dim: of the shared space, d.
    shared: one trunk for all modalities, or one each.
    moe: options of the sparse layers; None: dense.
    scan: scan over layers.
    remat: "none" | "activations" | "dots" | "full".
    dtype: of matmuls and activations; parameters, norms and `pooled` are f32.

  Parameters: stem_<m>, norm_<m>, trunk (or trunk_<m>), pool_<m>, project_<m>/kernel
  [w, d] and, if asked for, its bias [d]; wide_<m>.
  Random streams while training: "dropout", "router".
  """

  modalities: tuple[Modality, ...]
  embed_dim: int
  shared: bool = False
  moe: MoeConfig | None = None
  scan: bool = False
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, batch: Batch, train: bool = False
  ) -> tuple[dict[str, Encoded], Metrics]:
    """Encodes the modalities that the batch holds; its other keys are ignored.

    Args:
      batch: any non-empty subset of the modalities, their `<m>_mask` if any, and
        `valid` bool[b]: rows that are False neither route nor count in aux. A modality
        with `pack` is packed where its plan is there, `<m>_pack` int32[b, 2]; tokens of
        padding are 0 then.
      train: dropout, drop path, routing noise and training capacity.

    Returns:
      modality -> Encoded, with `pooled` f32[b, d]; and a flat dict: `losses/<name>`
      f32[], weighted and averaged over the sparse layers, and
      `metrics/moe/layer<ii>/<name>`; of what is packed, `metrics/pack/<m>_cut` and
      `_filled`.

    Raises:
      ValueError: no known modality, batch sizes that differ in a shared trunk, or a
        batch that cannot be packed.
    """
    present = [m for m in self.modalities if m.name in batch]
    if not present:
      raise ValueError(
        f"the batch holds {sorted(batch)}, expected at least one of "
        f"{[m.name for m in self.modalities]} (config.model.modalities)"
      )
    x: dict[str, Array] = {}
    masks: dict[str, Array | None] = {}
    pools = {}
    for m in present:
      pools[m.name] = self._pool(m)
      given = batch.get(f"{m.name}_mask")
      raw = batch[m.name]
      if m.ngrams:
        raw, _ = _ids_and_ngrams(raw, m)
      tokens, mask = self._stem(m)(raw, given, train)
      tokens, masks[m.name] = pools[m.name].prepend(self._laid(m, tokens), mask)
      tokens = self._laid(m, tokens)
      if m.stem_norm:  # over the token of "cls" too, as in CLIP
        t = m.trunk
        norm = t.norm_of(self.dtype, f"norm_{m.name}")
        tokens = norm(Sum(tokens))[1] if t.fused else norm(tokens)
      x[m.name] = constrain.batch(tokens)
    packed, filled = places.packed(present, batch, masks)
    if train:
      packed |= places.aligned([m for m in present if m.name not in packed], x, masks)
    for name, layout in packed.items():
      x[name] = constrain.batch(layout.enter(x[name]))
    at = places.read(pools, x, masks, packed)
    y, read, aux = self._trunks(
      present, x, {**masks, **packed}, batch.get("valid"), train, at
    )
    aux |= filled
    for name, layout in packed.items():
      y[name] = constrain.batch(layout.leave(y[name]))
    encoded = {}
    for m in present:
      tokens, mask = y[m.name], masks[m.name]
      pool = pools[m.name]
      one = read.get(m.name)
      pooled = pool(tokens, mask) if one is None else pool.read(one, mask)
      if m.project:
        pooled = self._project(m, pooled)
      if m.wide:
        pooled = pooled + self._wide(m, batch, train)
      encoded[m.name] = Encoded(pooled, tokens, places.whole(mask, tokens))
    return encoded, aux

  def _laid(self, m: Modality, tokens: Array) -> Array:
    return constrain.in_order(tokens) if m.trunk.on_gpu else tokens

  def _stem(self, m: Modality) -> nn.Module:
    make: Callable[..., nn.Module]
    if m.stem == "tokens":
      make = functools.partial(
        stem.Tokens,
        vocab=m.vocab,
        length=m.length,
        pad=m.pad,
        eos=m.eos,
      )
    elif m.stem == "token_patches":
      make = functools.partial(
        stem.TokenPatches,
        vocab=m.vocab,
        size=(m.length, *m.patch),
        pad=m.pad,
        bias=m.stem_bias,
      )
    else:
      make = functools.partial(
        stem.Patches,
        size=m.size,
        patch=m.patch,
        drop=m.drop_patches,
        bias=m.stem_bias,
        log_mel=m.log_mel,
      )
    return make(
      width=m.trunk.width,
      position=m.position,
      name_of=m.name,
      dtype=self.dtype,
      name=f"stem_{m.name}",
    )

  def _pool(self, m: Modality) -> Pool:
    return Pool(
      m.pool,
      m.trunk.width,
      heads=m.trunk.heads,
      hidden=m.trunk.mlp,
      norm_kind=m.trunk.norm,
      epsilon=m.trunk.epsilon,
      activation=m.trunk.activation,
      dtype=self.dtype,
      implementation=m.trunk.attention,
      registers=m.registers,
      name=f"pool_{m.name}",
    )

  def _wide(self, m: Modality, batch: Batch, train: bool) -> Array:
    """Returns f32[b, d]: what the modality's wide path adds to its embedding."""
    name = f"wide_{m.name}"
    if m.stem == "tokens":
      _, grams = _ids_and_ngrams(batch[m.name], m)
      ngrams = wide.Ngrams(self.embed_dim, m.ngram_rows, m.drop_ngrams, name=name)
      return ngrams(grams, train)
    described = wide.Descriptors(
      self.embed_dim,
      gradients=m.gradients,
      colors=m.colors,
      color_range=m.color_range,
      drop=m.drop_descriptors,
      name_of=m.name,
      dtype=self.dtype,
      name=name,
    )
    return described(batch[m.name], batch.get(f"{m.name}_mask"), train)

  def _project(self, m: Modality, pooled: Array) -> Array:
    project = nn.Dense(
      self.embed_dim,
      use_bias=m.project_bias,
      dtype=self.dtype,
      dot_general=_accumulate_f32,
      name=f"project_{m.name}",
    )
    return project(pooled)

  def _trunks(
    self,
    present: list[Modality],
    x: dict[str, Array],
    masks: Masks,
    valid: Array | None,
    train: bool,
    at: Mapping[str, int | Array],
  ) -> tuple[dict[str, Array], dict[str, Array], Metrics]:
    """Returns modality -> [b, n, w]; of some [b, 1, w], see `Trunk`; and aux."""
    init = self.is_initializing()
    trunk_of = functools.partial(
      trunk_lib.Trunk if init else trunk_lib.casting(self.dtype),
      moe=self.moe,
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
    )
    if self.shared:
      if len({y.shape[0] for y in x.values()}) > 1:
        sizes = {m: y.shape[0] for m, y in x.items()}
        raise ValueError(f"modalities of one batch differ in their examples: {sizes}")
      whole = sum(m.tokens for m in self.modalities)
      trunk = trunk_of(present[0].trunk, example=whole, name="trunk")
      routed = self._routed(x, masks, valid)
      shared, one, reports = trunk(x, masks, routed, train, at)
      return dict(shared), dict(one), _collect([reports])
    done: dict[str, Array] = {}
    read: dict[str, Array] = {}
    all_reports: list[dict[int, Metrics]] = []
    for m in present:
      one, mask = {m.name: x[m.name]}, {m.name: masks[m.name]}
      trunk = trunk_of(m.trunk, example=m.tokens, name=f"trunk_{m.name}")
      place = {m.name: at[m.name]} if m.name in at else {}
      routed = self._routed(one, mask, valid)
      own, token, reports = trunk(one, mask, routed, train, place)
      done |= own
      read |= token
      all_reports.append(
        {i: {_of(k, m.name): v for k, v in r.items()} for i, r in reports.items()}
      )
    return done, read, _collect(all_reports)

  def _routed(self, x: Streams, masks: Masks, valid: Array | None) -> Array | None:
    """Returns bool[b, sum of n]: real tokens of valid examples; None if dense."""
    if self.moe is None:
      return None
    names = sorted(x)
    routed = jnp.concatenate([places.whole(masks[m], x[m]) for m in names], axis=1)
    if valid is None:
      return routed
    owners = valid[:, None]
    if any(isinstance(masks[m], Packed) for m in names):
      of_each = [places.of_example(masks[m], x[m], valid) for m in names]
      owners = jnp.concatenate(of_each, axis=1)
    return routed & owners


def _accumulate_f32(lhs, rhs, dims, precision=None, preferred_element_type=None):
  # bf16 inputs, f32 sums: the embedding is not rounded to 8 bits.
  del preferred_element_type
  return jax.lax.dot_general(
    lhs, rhs, dims, precision=precision, preferred_element_type=jnp.float32
  )


def _ids_and_ngrams(x: Array, m: Modality) -> tuple[Array, Array]:
  """Splits int[b, n + ngrams] into the ids and the n-grams behind them."""
  if x.ndim != 2 or x.shape[1] <= m.ngrams:
    raise ValueError(
      f"{m.name} has shape {x.shape}, expected [b, n + {m.ngrams}]: ids, and behind "
      f"them config.model.modalities.{m.name}.ngrams = {m.ngrams} n-grams"
    )
  n = x.shape[1] - m.ngrams
  return x[:, :n], x[:, n:]


def _of(name: str, modality: str) -> str:
  """Makes a metric's name unique among trunks; losses keep theirs, to be averaged."""
  if name.startswith("losses/") or name.endswith(f"/{modality}"):
    return name
  return f"{name}/{modality}"


def _collect(trunks: list[dict[int, Metrics]]) -> Metrics:
  """Averages the losses over the sparse layers that report them; names the metrics."""
  losses: dict[str, list[Array]] = {}
  aux: Metrics = {}
  for reports in trunks:
    for i, report in reports.items():
      for name, value in report.items():
        if name.startswith("losses/"):
          losses.setdefault(name, []).append(value)
        else:
          name = name.removeprefix("metrics/")
          aux[f"metrics/moe/layer{i:02d}/{name}"] = value
  means = {name: jnp.mean(jnp.stack(values)) for name, values in losses.items()}
  return means | aux
