"""Multi-label classification against loops; and sharded classes, head and all."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.heads import prototypes
from model.losses import multilabel
from model.types import MESH_AXES, Encoded
from sharding import rules
from tests import slopes

B, V, D = 6, 8, 4
LABELS = np.int32(
  [[3, 0, -1], [-1, -1, -1], [7, -1, 2], [1, -1, -1], [5, 6, 4], [0, 1, 2]]
)
VALID = np.arange(B) != 4


def cross_entropy(logits, labels, form):
  """Of one row."""
  own = [v for v in labels if v >= 0]
  if form == "softmax":
    log_p = logits - np.log(np.sum(np.exp(logits)))
    return -np.mean([log_p[v] for v in own])
  p = 1 / (1 + np.exp(-logits))
  return -sum(np.log(p[v] if v in own else 1 - p[v]) for v in range(V))


@pytest.mark.parametrize("form", multilabel.FORMS)
def test_value_and_slope_are_the_loop(form):
  z = {m: np.float32(3) * x for m, x in slopes.unit(B, V).items()}
  known = [i for i in range(B) if VALID[i] and LABELS[i].max() >= 0]

  def loop(z):
    each = [cross_entropy(z[m][i], LABELS[i], form) for m in z for i in known]
    return np.mean(each)

  loss = multilabel.Loss(modalities=("image", "text"), labels="label_x", form=form)
  metrics = slopes.assert_is(loss, loop, z, {"valid": VALID, "label_x": LABELS})
  np.testing.assert_allclose(metrics["multilabel/labels"], 8 / 4, rtol=1e-6)
  hits = np.mean([np.argmax(z["text"][i]) in LABELS[i] for i in known])
  np.testing.assert_allclose(metrics["multilabel/top1_text"], hits, rtol=1e-6)


def test_one_class_each_needs_no_second_axis_and_no_class_is_no_loss():
  z = {"image": slopes.unit(B, V)["image"]}
  loss = jax.jit(lambda labels: multilabel.Loss()({}, z, {"label_nouns": labels})[0])
  labels = np.arange(B, dtype=np.int32) - 1
  np.testing.assert_array_equal(loss(labels), loss(labels[:, None]))
  assert loss(labels) > 0 and loss(np.full(B, -1, np.int32)) == 0


def test_sharded_classes_are_exact_and_their_logits_are_gathered_nowhere():
  """The classes over tensor (and fsdp), by the rules; the rows over data."""
  head, loss = prototypes.Head(classes=V, bias=-1.0), multilabel.Loss()
  x = slopes.unit(8, D)["image"]
  labels = np.resize(LABELS, (8, 3))
  params = head.init(jax.random.key(0), {"image": Encoded(x)})

  def f(params, x, labels):
    e = head(params, {"image": Encoded(x)}, jax.random.key(0), True)
    return loss({}, {"image": e["image"].pooled}, {"label_nouns": labels})[0]

  step = jax.value_and_grad(f, argnums=(0, 1))
  want = jax.jit(step)(params, x, labels)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 1, 2), MESH_AXES, axis_types=auto)
  laid = rules.specs({"heads": {"0": params}}, mesh)["heads"]["0"]
  assert laid["classes"]["embedding"].spec == P("tensor", "fsdp")
  assert laid["classes"]["bias"].spec == P("tensor")
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P(("data", "fsdp")))
    args = jax.device_put((params, x, labels), (laid, split, split))
    compiled = jax.jit(step, out_shardings=(None, (laid, split))).lower(*args).compile()
    got = jax.device_get(compiled(*args))
  for one, all_of_them in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, all_of_them, rtol=3e-6, atol=3e-6)
  # Of one device: 2 rows, 4 of the 8 classes.
  assert "f32[2,4]" in compiled.as_text() and "f32[2,8]" not in compiled.as_text()


def test_errors_say_what_to_set():
  z = {"image": slopes.unit(B, V)["image"]}
  with pytest.raises(ValueError, match=r"'label_nouns'\], i32\[b\] or i32\[b, n\]"):
    multilabel.Loss()({}, z, {})
  with pytest.raises(ValueError, match="form = 'tanh'"):
    multilabel.Loss(form="tanh")
