"""benchmarks.kernels: what is added up of a trace, without a GPU."""

import pytest

from benchmarks import kernels

TEXT = """
  %loop_add_fusion.1 = bf16[2]{0} fusion(%x), metadata={op_name="jit(step)/mlp/add"}
  ROOT %input-reduce.2 = f32[] fusion(%y), metadata={op_name="jit(step)/sum"}
"""


def test_a_step_is_told_by_kind_and_by_name():
  ran = [
    kernels.Ran("nvjet_sm90_tst_192x192", 3e6, 0.0),
    kernels.Ran("loop_add_fusion_1", 1e6, 3e6),
    kernels.Ran("cudnn_generated_sdpa_bprop", 2e6, 4e6),
    kernels.Ran("loop_add_fusion_1", 1e6, 6e6),
    kernels.Ran("input_reduce_2", 2000.0, 8e6),
  ]
  found = kernels.summary(ran, 2, TEXT)
  assert found["milliseconds"] == 3.501
  assert found["idle"] == 0.5  # one between the last two, of two steps
  assert found["kinds"]["products"] == dict(milliseconds=1.5, kernels=0.5)
  assert found["kinds"]["attention"] == dict(milliseconds=1.0, kernels=0.5)
  assert found["kinds"]["all else"] == dict(milliseconds=1.001, kernels=1.5)
  assert found["short"] == dict(milliseconds=0.001, kernels=0.5)
  names = [row["name"] for row in found["kernels"]]
  assert names[0].startswith("nvjet") and len(names) == 4
  purposes = {row["name"]: row["of"] for row in found["kernels"]}
  assert purposes["loop_add_fusion_1"] == "jit(step)/mlp/add"
  assert purposes["input_reduce_2"] == "jit(step)/sum"


def test_without_a_gpu_there_is_nothing_to_read():
  with pytest.raises(SystemExit, match="there is none"):
    kernels.main([])
