import jax
import numpy as np
import pytest

from tests import small
from tools import aot_least, hlo_collectives
from training import setup as setup_lib


def test_the_least_that_a_step_must_send_follows_the_layout():
  config = small.limoe(batch_size=32)
  config.mesh.update(dict(data=2, fsdp=2, expert=2))
  setup = setup_lib.build(config)
  least = {x["what"]: x["least"] for x in aot_least.lines(setup, [], "train")}
  b, d = config.batch_size, config.model.embed_dim
  assert least["loss"] == round(2 * b * d * 4 * 7 / 8)
  gathered = summed = 0.0
  for x in jax.tree.leaves(setup.abstract_state().params["towers"]):
    axes = {a for part in x.sharding.spec if part for a in np.atleast_1d(part)}
    here = 4 * x.size / (2 if "expert" in axes else 1)
    gathered += 3 * here / 2 if "fsdp" in axes else 0
    copies = 2 ** (3 - len(axes))
    summed += 2 * here / (2 if "fsdp" in axes else 1) * (copies - 1) / copies
  assert (least["weights"], least["gradients"]) == (round(gathered), round(summed))
  evaluated = {x["what"]: x["least"] for x in aot_least.lines(setup, [], "eval")}
  assert (evaluated["loss"], evaluated["gradients"]) == (0, 0)
  assert 3 * evaluated["weights"] == least["weights"]
  assert 2 * evaluated["exchange"] == least["exchange"]


@pytest.mark.parametrize(
  ("kind", "axes", "shape", "source", "line"),
  [
    ("all-to-all", ("expert",), "bf16[4,8]", "", "exchange"),
    ("all-gather", ("data",), "f32[8,16]", "jit(step)/shard_map/all_gather", "loss"),
    ("all-gather", ("data",), "f32[1,8,16]", "jit(step)/shard_map/all_gather", "loss"),
    ("reduce-scatter", ("data",), "f32[32,16]", "", "loss"),
    ("reduce-scatter", ("fsdp",), "f32[16,16]", "", "weights"),
    ("all-reduce", ("data",), "f32[32,16]", "jvp(Towers)/project", "gradients"),
    ("all-gather", ("fsdp",), "bf16[4,8]", "squeeze", "weights"),
    ("collective-permute", ("fsdp",), "bf16[4,8]", "", "weights"),
    ("all-reduce", ("fsdp", "expert"), "bf16[4,8]", "", "gradients"),
  ],
)
def test_a_collective_has_its_line(kind, axes, shape, source, line):
  c = hlo_collectives.Collective(kind, shape, 1, 1, axes, (), source)
  assert aot_least.line_of(c, 16) == line
