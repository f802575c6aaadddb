"""Options that the contract tests do not sweep: 8 devices are one device there too."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.losses import ascl, cwcl, dcl, supcon, symile
from model.types import BATCH_AXES, MESH_AXES
from tests.model.losses import loops

B = 16
LOSSES = [
  symile.Loss(tuples="all"),
  # Their backward pass over a ring is written by hand.
  symile.Loss(modalities=("image", "text"), strategy="ring"),
  symile.Loss(modalities=("image", "text", "audio", "depth"), strategy="ring", tile=1),
  supcon.Loss(form="in"),
  ascl.Loss(targets="top", neighbours=3),
  dcl.Loss(intra=True, sigma=0.5, negatives="ids"),
  cwcl.Loss(kernel="exp", soft="both"),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__module__[13:])
def test_eight_devices_are_one_device(loss):
  modalities = getattr(loss, "modalities", ("image", "text"))
  z = loops.make(modalities=modalities, b=B, d=8)
  batch = {"valid": np.arange(B) % 5 != 1, "id": np.arange(B, dtype=np.int32) // 2}
  want = loops.evaluate(loss, z, batch)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 2, 1), MESH_AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P(BATCH_AXES))
    got = loops.evaluate(loss, *jax.device_put((z, batch), split))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=3e-6 * max(np.abs(y).max(), 1.0))
