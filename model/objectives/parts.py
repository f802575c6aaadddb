"""What objectives share: views of the batch, each encoded by itself, and heads on top.

Both are options of an objective, written as in a config:
  views = (("image", ("image_1", "image_2"), (("augment", {...}),)), ...)
  heads = ((("image_1", "image_2"), "projection", {...}), ...)
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model import catalogue
from model.losses import pairs as pairing
from model.types import PARTS, Array, Batch, Encoded, Params

VIEWS = "config.objective.options.views"
HEADS = "heads"  # their place among an objective's parameters; no loss is called so
HEADS_KEY = "config.objective.options.heads"
_AT_TEACHER = "@teacher"


class Views(NamedTuple):
  """One entry of the option `views`: a modality, seen once under each name.

  Attributes:
    modality: of the batch.
    names: what the views are called in z; the modality's own name is one like others.
    steps: of model/views/, in order; () leaves the modality as it is.
  """

  modality: str
  names: tuple[str, ...]
  steps: tuple[Any, ...]


def build_views(entries: Any) -> tuple[Views, ...]:
  """Returns the entries of the option `views`, built.

  A file of model/views/ with a field `modality` is told the entry's.

  Raises:
    ValueError: a malformed entry, a name given twice, an unknown view or option.
  """
  out: list[Views] = []
  seen: set[str] = set()
  for i, entry in enumerate(entries):
    where = f"{VIEWS}[{i}]"
    if isinstance(entry, str) or len(entry) != 3:
      raise ValueError(
        f"{where} = {entry!r} must be (modality, names, ((view, options), ...))"
      )
    modality, names, steps = entry
    names = _names(names, where)
    if repeated := sorted(seen & set(names)):
      raise ValueError(f"{where} names {repeated} again: each view has its own name")
    seen |= set(names)
    built = tuple(_step(step, modality, f"{where}[2]") for step in steps)
    out.append(Views(modality, names, built))
  return tuple(out)


def view_names(modalities: Collection[str], views: tuple[Views, ...]) -> list[str]:
  """Returns the names that `encode_views` gives: unseen modalities, then views.

  Raises:
    ValueError: a view of a modality that is not there, or named as another one is.
  """
  viewed = {v.modality for v in views}
  others = [m for m in modalities if m not in viewed]
  for i, v in enumerate(views):
    if v.modality not in modalities:
      raise ValueError(
        f"{VIEWS}[{i}] looks at {v.modality!r}, which the batch does not have: "
        f"{catalogue.near_misses(v.modality, sorted(modalities))}"
      )
    if taken := sorted(set(v.names) & set(others)):
      raise ValueError(f"{VIEWS}[{i}] names {taken}: these are other modalities")
  return [*others, *(name for v in views for name in v.names)]


def encode_views(
  encode: Callable[..., Mapping[str, Encoded]],
  batch: Batch,
  views: tuple[Views, ...],
  key: Array,
  using: str = "online",
  names: Collection[str] | None = None,
) -> dict[str, Encoded]:
  """Encodes every view by a call of its own, and other modalities with the first.

  The same key makes the same views, whatever encodes them.

  Args:
    encode: (batch, using) -> {modality: Encoded}.
    batch: of all modalities.
    views: of `build_views`; (): one call, on the batch as it is.
    key: of the views' randomness.
    using: the parameters: "online" | "ema" | "frozen".
    names: the views and modalities to encode; None: all of them.

  Returns:
    View or modality -> Encoded.
  """
  viewed = {v.modality for v in views}
  encoded: dict[str, Encoded] = {}
  others: set[str] = set()
  for name, modality, seen in _each(batch, views, key):
    if names is not None and name not in names:
      continue
    # A sparse trunk routes together what is encoded together: the other modalities go
    # with a view rather than alone, and once.
    shown = _without(seen, (viewed | others) - {modality})
    out = dict(encode(_only(shown, names, modality), using=using))
    encoded[name] = out.pop(modality)
    if not others:
      encoded |= out
      others = set(out)
  if not encoded:
    encoded = dict(encode(_only(_without(batch, viewed), names), using=using))
  return encoded


def marked(batch: Batch, views: tuple[Views, ...]) -> Batch:
  """Returns the batch with "<view>_valid" bool[b], as "<modality>_valid" has it."""
  valid = {
    f"{name}_valid": batch[f"{v.modality}_valid"]
    for v in views
    for name in v.names
    if f"{v.modality}_valid" in batch
  }
  return {**batch, **valid} if valid else batch


def spec(
  towers: Any, batch_spec: Batch, views: tuple[Views, ...] = ()
) -> dict[str, Encoded]:
  """Returns what `encode_views` gives of such a batch, as jax.ShapeDtypeStruct leaves.

  Args:
    towers: of model.encoders.
    batch_spec: arrays or jax.ShapeDtypeStruct.
    views: of `build_views`.
  """

  def abstract(batch):
    # Nothing of this is computed.
    params = towers.init(jax.random.key(0), batch, train=False)

    def encode(seen, using):
      del using
      return towers.apply(params, seen, train=False)[0]

    return encode_views(encode, batch, views, jax.random.key(0))

  return jax.eval_shape(abstract, dict(batch_spec))


@dataclasses.dataclass(frozen=True)
class Heads:
  """The heads of an objective: the option `heads`, built.

  The parameters of the i-th entry are kept under str(i). An entry gets all its names at
  once and decides what they share; later entries see what earlier ones gave. A head
  that makes new names says of what: `sources(names) -> {new name: names}`.

  Attributes:
    entries: (names, a file of model/heads/, options) each.
    where: the config key of the entries, for error messages.

  Raises:
    ValueError: a malformed entry, an unknown head or option.
  """

  # Options come as dicts, which have no hash; the heads they build stand for them.
  entries: Any = dataclasses.field(default=(), compare=False)
  where: str = dataclasses.field(default=HEADS_KEY, compare=False)
  built: tuple[tuple[tuple[str, ...], Any], ...] = dataclasses.field(
    init=False, repr=False
  )

  def __post_init__(self):
    built = []
    for i, entry in enumerate(self.entries):
      where = f"{self.where}[{i}]"
      if isinstance(entry, str) or len(entry) != 3:
        raise ValueError(f"{where} = {entry!r} must be (names, head, options)")
      names, head, options = entry
      head = catalogue.load("model.heads", head, "Head", dict(options or {}))
      built.append((_names(names, where), head))
    object.__setattr__(self, "built", tuple(built))

  def __bool__(self) -> bool:
    return bool(self.built)

  def init(self, key: Array, spec: Mapping[str, Encoded]) -> Params:
    """Returns {str(i): parameters of the i-th head}, without those that have none.

    Args:
      key: of the initialisers.
      spec: what `parts.spec` returns.

    Raises:
      ValueError: a head on something that is not encoded.
    """
    params = {}
    seen = dict(spec)
    for i, (names, head) in enumerate(self.built):
      for name in names:
        if name not in seen:
          raise ValueError(
            f"{self.where}[{i}] is put on {name!r}, which nothing encodes: "
            f"{catalogue.near_misses(name, sorted(seen))}"
          )
      given = {name: seen[name] for name in names}
      own = head.init(jax.random.fold_in(key, i), given)
      if own:
        params[str(i)] = own
      run = lambda p, x, k, head=head: head(p, x, k, False)  # noqa: E731
      seen |= jax.eval_shape(run, own, given, key)
    return params

  def spec(self, params: Params, spec: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """Returns what the heads make of `spec`, as jax.ShapeDtypeStruct leaves."""
    run = lambda p, x: self(p, x, jax.random.key(0), False)  # noqa: E731
    return jax.eval_shape(run, params, dict(spec))

  def __call__(
    self,
    params: Params,
    encoded: Mapping[str, Encoded],
    key: Array,
    train: bool,
    batch: Batch | None = None,
  ) -> dict[str, Encoded]:
    """Returns encoded with each head's outputs in place of its inputs.

    Args:
      params: of `init`.
      encoded: view or modality -> Encoded; some of those that the heads are put on.
      key: of the heads' randomness.
      train: whether they are being trained.
      batch: with "valid" and "<name>_valid", bool[b] each, if there are any. The heads
        see other examples of a name as examples without a real token.
    """
    out, marked = dict(encoded), self.marked(batch or {})
    for i, (names, head) in enumerate(self.built):
      given = {n: _only_valid(out[n], marked, n) for n in names if n in out}
      own = jax.random.fold_in(key, i)
      if given:
        out |= head(params.get(str(i), {}), given, own, train)
    return out

  def marked(self, batch: Batch) -> Batch:
    """Returns the batch with "<new name>_valid" bool[b], where all sources are."""
    for name, sources in self.made.items():
      known = [batch[f"{m}_valid"] for m in sources if f"{m}_valid" in batch]
      if known:
        valid = pairing.valid_rows(batch, known[0].shape[0], *sources)
        batch = {**batch, f"{name}_valid": valid}
    return batch

  @property
  def made(self) -> dict[str, tuple[str, ...]]:
    """Returns each name that only heads give -> those that it is made of."""
    with_new = ((names, head) for names, head in self.built if hasattr(head, "sources"))
    return {
      new: of for names, head in with_new for new, of in head.sources(names).items()
    }


def check_pack(batch: Batch, seen: Batch, modality: str) -> None:
  """Raises ValueError where a view's mask is not the one that packing was planned for.

  Args:
    batch: as it was loaded.
    seen: the view of it.
    modality: that the view changed.
  """
  mask = f"{modality}_mask"
  if f"{modality}_pack" in seen and seen.get(mask) is not batch.get(mask):
    raise ValueError(
      f"a view changes which tokens of {modality!r} are real, after they were planned "
      f"into rows: set config.model.modalities.{modality}.pack.tokens = 0"
    )


def of_teacher(name: str) -> str:
  """Returns what a teacher's embedding of a view or modality is called in z."""
  return f"{name}{_AT_TEACHER}"


def taught(name: str) -> str:
  """Returns the view or modality of what `of_teacher` names; "" of any other name."""
  own = name.removesuffix(_AT_TEACHER)
  return "" if own == name else own


def unit(encoded: Mapping[str, Encoded]) -> dict[str, Array]:
  """Returns name -> the pooled embeddings f32[b, d] at unit norm."""
  return {m: normalize(e.pooled.astype(jnp.float32)) for m, e in encoded.items()}


def normalize(x: Array) -> Array:
  """Returns x f32[..., d] at unit L2 norm; zero stays zero, with a finite gradient."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _names(names: Any, where: str) -> tuple[str, ...]:
  if isinstance(names, str) or not names or len(set(names)) != len(names):
    raise ValueError(f"{where}: names = {names!r} must be different names, in a tuple")
  return tuple(names)


def _step(step: Any, modality: str, where: str) -> Any:
  if isinstance(step, str) or len(step) != 2:
    raise ValueError(f"{where}: {step!r} must be (view, options)")
  name, options = step
  cls = catalogue.find("model.views", name, "View")
  options = dict(options or {})
  if any(f.name == "modality" for f in dataclasses.fields(cls)):
    options.setdefault("modality", modality)
  return catalogue.build(cls, options, f"model.views.{name}")


def _only_valid(e: Encoded, batch: Batch, name: str) -> Encoded:
  if not {"valid", f"{name}_valid"} & batch.keys():
    return e
  valid = pairing.valid_rows(batch, e.pooled.shape[0], name)
  if e.mask is None:
    return dataclasses.replace(e, mask=valid[:, None])
  return dataclasses.replace(e, mask=e.mask & valid[:, None])


def _each(
  batch: Batch, views: tuple[Views, ...], key: Array
) -> Iterator[tuple[str, str, Batch]]:
  """Yields (name, modality, batch with that view of it)."""
  count = 0
  for v in views:
    for name in v.names:
      seen = batch
      own = jax.random.fold_in(key, count)
      for i, step in enumerate(v.steps):
        seen = step(seen, jax.random.fold_in(own, i))
      check_pack(batch, seen, v.modality)
      count += 1
      yield name, v.modality, seen


def _only(batch: Batch, names: Collection[str] | None, *modalities: str) -> Batch:
  """Returns of the batch what a tower reads of these modalities."""
  if names is None:
    return batch
  keep = {"valid"} | {m + part for m in (*names, *modalities) for part in PARTS}
  return {k: v for k, v in batch.items() if k in keep}


def _without(batch: Batch, modalities: set[str]) -> Batch:
  hidden = {m + part for m in modalities for part in PARTS}
  return {k: v for k, v in batch.items() if k not in hidden}
