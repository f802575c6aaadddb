"""What every evaluator is given, and one pass over a split that they all share.

Every host calls every evaluator and gets the same arrays: nothing here depends on the
process index, so that no host waits for a collective that another one skipped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from input_pipeline import pipeline
from model.types import ROUTES, Batch, Encoded, Params
from sharding import placement

Watch = Callable[[Batch, Mapping[str, jax.Array]], None]
Encode = Callable[[Params, Batch], tuple[dict[str, Encoded], dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Context:
  """What an evaluator needs besides the parameters.

  Attributes:
    mesh: the devices that encode.
    encode: pure (params, batch) -> (modality -> Encoded, aux), in evaluation mode;
      what starts with "routes/" in aux is of each token.
    config: the whole recipe.
    workdir: where artifacts go, under artifacts/; "" keeps none.
  """

  mesh: jax.sharding.Mesh
  encode: Encode
  config: ConfigDict
  workdir: str = ""
  # One jitted function for all evaluators and all steps of a run: compiled once for
  # each set of modalities and batch size.
  _compiled: dict[str, Any] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def apply(
    self, params: Params, batch: Mapping[str, jax.Array], read: str = "embeddings"
  ) -> Any:
    """Returns what READERS[read] reads of one global batch; compiles once."""
    if read not in self._compiled:
      self._compiled[read] = jax.jit(READERS[read](self.encode))
    with jax.set_mesh(self.mesh):
      return self._compiled[read](params, batch)

  def changed(self, **fields: Any) -> "Context":
    """Returns a context with some other fields, which shares the compiled programs.

    Not for another mesh or encode: the programs are those of this one.
    """
    new = dataclasses.replace(self, **fields)
    object.__setattr__(new, "_compiled", self._compiled)
    return new


@dataclasses.dataclass(frozen=True)
class Embedded:
  """A whole split in the shared space, without padding, the same on every host.

  Attributes:
    z: modality -> f32[n, d], L2-normalised; what else READERS read, as they say.
    id: i32[n]; equal ids mean the same concept, hence a positive pair.
    labels: label name -> i32[n], -1 where unlabelled.
    index: i64[n], positions in `input_pipeline.pipeline.source(config, split=...)`.
    aux: the towers' aux, each averaged over batches, weighted by their valid rows;
      without ROUTES.
  """

  z: dict[str, np.ndarray]
  id: np.ndarray
  labels: dict[str, np.ndarray]
  index: np.ndarray
  aux: dict[str, np.ndarray]


def embedder(encode: Callable) -> Callable:
  """Returns embed(params, batch) -> (modality -> unit f32[b, d], aux), to be jitted."""

  def embed_batch(params, batch):
    encoded, aux = encode(params, batch)
    return {m: normalise(e.pooled) for m, e in encoded.items()}, aux

  return embed_batch


def token_reader(encode: Callable) -> Callable:
  """Returns read(params, batch) -> (tokens and <m>_mask of modalities, {}).

  Raises:
    ValueError: a tower, or a head on it, that gives no tokens.
  """

  def read(params, batch):
    out: dict[str, jax.Array] = {}
    for m, e in encode(params, batch)[0].items():
      if e.tokens is None:
        raise ValueError(
          f"{m!r} has no tokens: a head that makes the embedding took them"
        )
      mask = jnp.ones(e.tokens.shape[:2], bool) if e.mask is None else e.mask
      out |= {m: e.tokens.astype(jnp.float32), f"{m}_mask": mask}
    return out, {}

  return read


def gaussian_reader(encode: Callable) -> Callable:
  """Returns read(params, batch) -> (means and <m>_log_var of modalities, {}).

  Raises:
    ValueError: a modality without a variance.
  """

  def read(params, batch):
    out: dict[str, jax.Array] = {}
    for m, e in encode(params, batch)[0].items():
      if e.log_var is None:
        raise ValueError(
          f"{m!r} has no variance: only heads such as 'probabilistic' give one"
        )
      out |= {m: e.pooled.astype(jnp.float32), f"{m}_log_var": e.log_var}
    return out, {}

  return read


# What an evaluator may ask for.
READERS = {
  "embeddings": embedder,
  "tokens": token_reader,
  "gaussians": gaussian_reader,
}


def normalise(x: jax.Array) -> jax.Array:
  """Returns x [b, d] in f32 and at unit length; a zero vector stays zero."""
  x = x.astype(jnp.float32)
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(norm, 1e-12)


def embed(
  context: Context,
  params: Params,
  *,
  split: str,
  modalities: Sequence[str] = (),
  batch_size: int = 0,
  options: Mapping[str, Any] | None = None,
  watch: Watch | None = None,
  limit: int = 0,
  read: str = "embeddings",
) -> Embedded:
  """Encodes a split once: padded batches in, unpadded unit embeddings out.

  Args:
    context: mesh, encode function and recipe.
    params: the towers' and the objective's parameters, as `context.encode` takes them.
    split: which split of config.data.source.
    modalities: to encode; () is all that the model has.
    batch_size: global; 0 is config.batch_size.
    options: changes to the source's options, such as a drawing style or a language.
    watch: called with each global batch, padding included, and its aux.
    limit: usable examples, the first ones; 0 is all.
    read: of READERS: the embeddings, or what else the towers and heads give.

  Raises:
    ValueError: an unknown modality, a split without examples, or one whose embeddings
      do not fit into this host's memory.
  """
  known = tuple(context.config.model.modalities)
  wanted = tuple(modalities) or known
  if unknown := set(wanted) - set(known):
    raise ValueError(
      f"modalities {sorted(unknown)} are not in config.model.modalities {list(known)}"
    )
  shard, shards = placement.data_shard(context.mesh)
  batches = pipeline.eval_batches(
    context.config,
    split=split,
    batch_size=batch_size or context.config.batch_size,
    process_index=shard,
    process_count=shards,
    options=options,
  )
  hidden = {k for m in set(known) - set(wanted) for k in (m, f"{m}_mask")}
  kept = ({k: v for k, v in b.items() if k not in hidden} for b in batches)
  rows = limit or len(batches) * (batch_size or context.config.batch_size)
  z, side, aux = _encode_all(context, params, kept, watch, rows, split, read)
  if not z or not len(side["valid"]):
    raise ValueError(
      f"split {split!r} of {context.config.data.source!r} has no examples"
    )
  return _unpadded(z, side, aux, rows)


def _unpadded(
  z: Mapping[str, np.ndarray],
  side: Mapping[str, np.ndarray],
  aux: dict[str, np.ndarray],
  limit: int,
) -> Embedded:
  """Returns the first `limit` valid rows of what `_encode_all` gives."""
  valid = side["valid"].astype(bool)
  valid &= np.cumsum(valid) <= limit
  index = side.get("index", np.cumsum(valid) - 1)
  labels = {
    key.removeprefix("label_"): value[valid]
    for key, value in side.items()
    if key.startswith("label_")
  }
  return Embedded(
    z={m: x[valid] for m, x in z.items()},
    id=side["id"][valid],
    labels=labels,
    index=index[valid].astype(np.int64),
    aux=aux,
  )


def check_memory(
  dims: Mapping[str, int], rows: int, split: str, free: int | None = None
) -> None:
  """Checks that the embeddings of a split fit into this host's memory.

  Args:
    dims: modality -> d; each row holds f32[d].
    rows: to be embedded.
    split: for the message.
    free: bytes; None asks the system, and checks nothing if that does not know.

  Raises:
    ValueError: they do not; with the arithmetic.
  """
  free = free_memory() if free is None else free
  need = 2 * 4 * rows * sum(dims.values())  # twice: parts, then joined
  if free is not None and need > free:
    sizes = " + ".join(f"{m} {rows:,} x {d}" for m, d in sorted(dims.items()))
    raise ValueError(
      f"the embeddings of split {split!r} ({sizes}, f32) need {need / 2**30:.1f} GiB "
      f"of host memory while they are joined, and {free / 2**30:.1f} GiB are free: set "
      "the evaluator's limit, name a smaller split, or take a host with more memory"
    )


def free_memory() -> int | None:
  """Returns the bytes of memory that this host has free; None where it does not say."""
  path = epath.Path("/proc/meminfo")  # sysconf counts no cache, which can be given back
  if not path.exists():
    return None
  found = dict(line.split(":", 1) for line in path.read_text().splitlines())
  return 1024 * int(found["MemAvailable"].split()[0])


def encode_rows(
  context: Context, params: Params, rows: Mapping[str, np.ndarray], batch_size: int = 0
) -> dict[str, np.ndarray]:
  """Encodes arrays that every host holds in full, such as the prompts of classes.

  Args:
    context: mesh, encode function and recipe.
    params: as `context.encode` takes them.
    rows: key -> [n, ...], the same on every host.
    batch_size: global; 0 is config.batch_size. The last batch is padded.

  Returns:
    modality -> f32[n, d], L2-normalised.
  """
  batch_size = batch_size or context.config.batch_size
  n = len(next(iter(rows.values())))
  z, _, _ = _encode_all(context, params, _own_rows(rows, n, batch_size, context.mesh))
  return {m: x[:n] for m, x in z.items()}


def save(context: Context, name: str, **arrays: Any) -> None:
  """Writes <workdir>/artifacts/<name>.npz, on process 0 only."""
  if not context.workdir or jax.process_index() != 0:
    return
  folder = epath.Path(context.workdir) / "artifacts"
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / f"{name.replace('/', '_')}.npz").open("wb") as f:
    np.savez_compressed(f, **arrays)


def to_numpy(x: jax.Array) -> np.ndarray:
  """Returns the global value of x on this host, whatever its sharding."""
  if x.is_fully_addressable:
    return np.asarray(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _encode_all(
  context: Context,
  params: Params,
  batches: Iterable[Mapping[str, np.ndarray]],
  watch: Watch | None = None,
  limit: int = 0,
  split: str = "",
  read: str = "embeddings",
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Returns (embeddings, ids and labels, averaged aux), padding rows included.

  Ends with the batch that reaches `limit` valid rows, if that is not 0; these must fit
  into memory.
  """
  modalities = tuple(context.config.model.modalities)
  arrays = {k for m in modalities for k in (m, f"{m}_mask")}
  z: dict[str, list[np.ndarray]] = {}
  side: dict[str, list[np.ndarray]] = {}
  aux: dict[str, np.ndarray] = {}
  weight = 0.0
  for rows in batches:
    batch = placement.put_batch(rows, context.mesh)
    encoded, batch_aux = context.apply(params, batch, read)
    if not z and limit:
      check_memory(
        {m: math.prod(x.shape[1:]) for m, x in encoded.items()}, limit, split
      )
    for m, x in encoded.items():
      z.setdefault(m, []).append(to_numpy(x))
    # Sorted: each is a collective, and the order of a set differs between processes.
    for key in sorted(batch.keys() - arrays):
      side.setdefault(key, []).append(to_numpy(batch[key]))
    share = float(np.sum(side["valid"][-1]))
    if watch is not None:
      watch(batch, batch_aux)
    for key in sorted(k for k in batch_aux if not k.startswith(ROUTES)):
      value = batch_aux[key]
      aux[key] = aux.get(key, 0.0) + share * to_numpy(value).astype(np.float64)
    weight += share
    if limit and weight >= limit:
      break
  averaged = {k: np.asarray(v / max(weight, 1.0), np.float32) for k, v in aux.items()}
  return _joined(z), _joined(side), averaged


def _joined(parts: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
  return {key: np.concatenate(values) for key, values in parts.items()}


def _own_rows(
  rows: Mapping[str, np.ndarray], n: int, batch_size: int, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's share of each padded global batch."""
  shard, shards = placement.data_shard(mesh)
  own = batch_size // shards
  for start in range(0, n, batch_size):
    first = start + own * shard
    at = np.arange(first, first + own)
    # Padding repeats the last row: real ids keep every code path finite.
    batch = {key: np.asarray(x)[np.minimum(at, n - 1)] for key, x in rows.items()}
    yield batch | {"valid": at < n}
