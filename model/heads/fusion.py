"""Late fusion: a classifier of several embeddings together, and one of each alone.

M3CoL (arXiv 2409.17777): an MLP on the concatenated embeddings decides, and the ones on
a single modality see to it that none is left behind.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from model.types import Array, Encoded, Params

TOGETHER = "fusion"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """Logits under new names: "<name>_class" for each name, and "fusion_class".

  What it is put on stays as it is; the loss `multilabel` reads the new names.

  Attributes:
    classes: of the task.
    layers: matrices of each MLP, with a ReLU between them; at least 1.
    hidden: width of all but the last.
  """

  classes: int
  layers: int = 3
  hidden: int = 128

  def __post_init__(self):
    if self.classes < 1 or self.layers < 1 or self.hidden < 1:
      raise ValueError(
        f"fusion has classes = {self.classes}, layers = {self.layers} and hidden = "
        f"{self.hidden}; expected at least 1 of each"
      )

  def init(self, key: Array, spec: Mapping[str, Encoded]) -> Params:
    """Returns {name or "fusion": {"layer<i>": {"kernel", "bias"}}}."""
    widths = {name: e.pooled.shape[-1] for name, e in spec.items()}
    widths[TOGETHER] = sum(widths.values())
    params: dict[str, dict[str, Params]] = {}
    for i, (name, width) in enumerate(widths.items()):
      own = jax.random.split(jax.random.fold_in(key, i), self.layers)
      params[name] = {}
      for j in range(self.layers):
        out = self.hidden if j < self.layers - 1 else self.classes
        gain = (2.0 if j < self.layers - 1 else 1.0) / width  # He's
        kernel = gain**0.5 * jax.random.normal(own[j], (width, out))
        params[name][f"layer{j}"] = {"kernel": kernel, "bias": jnp.zeros(out)}
        width = out
    return params

  def __call__(
    self, params: Params, encoded: Mapping[str, Encoded], key: Array, train: bool
  ) -> dict[str, Encoded]:
    """Returns {"<name>_class": Encoded with the logits as pooled f32[b, classes]}."""
    del key, train
    x = {name: e.pooled.astype(jnp.float32) for name, e in encoded.items()}
    x[TOGETHER] = jnp.concatenate(list(x.values()), axis=-1)
    return {f"{n}_class": Encoded(self._mlp(params[n], v)) for n, v in x.items()}

  def sources(self, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Returns each new name -> those of `names` that it is made of."""
    return {f"{n}_class": (n,) for n in names} | {f"{TOGETHER}_class": names}

  def _mlp(self, params: Params, x: Array) -> Array:
    for j in range(self.layers):
      layer = params[f"layer{j}"]
      x = x @ layer["kernel"] + layer["bias"][None]
      x = x if j == self.layers - 1 else jax.nn.relu(x)
    return x
