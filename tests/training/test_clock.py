import jax
import jax.numpy as jnp
import pytest

from configs import base
from model.encoders import towers
from training import clock


class Time:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


@pytest.fixture
def time():
  return Time()


def steps(watch, time, n, wait, work):
  for _ in range(n):
    with watch.waiting():
      time.now += wait
    time.now += work


def test_a_lap_counts_steps_and_waits_but_not_pauses(time):
  watch = clock.StepClock(now=time)
  time.now = 100.0  # compiling
  watch.start()
  steps(watch, time, n=4, wait=0.5, work=1.5)
  with watch.paused():
    time.now += 1000.0
  lap = watch.lap(batch_size=16, flops=8e12)
  assert lap == {
    "step_seconds": 2.0,
    "data_wait": 0.25,
    "examples_per_s": 8.0,
    "examples_per_s_per_chip": 1.0,
    "tflops_per_s_per_chip": 0.5,
  }  # no mfu on CPU


def test_laps_are_independent(time):
  watch = clock.StepClock(now=time)
  steps(watch, time, n=1, wait=1.0, work=1.0)
  watch.lap(8)
  steps(watch, time, n=2, wait=0.0, work=1.0)
  lap = watch.lap(8)
  assert lap["data_wait"] == 0.0
  assert lap["step_seconds"] == 1.0
  with pytest.raises(ValueError, match="no step since the last lap"):
    watch.lap(8)


def test_mfu_shows_where_the_peak_is_known(time, monkeypatch):
  monkeypatch.setattr(clock, "peak_flops", lambda kind: 1e12)
  watch = clock.StepClock(now=time)
  steps(watch, time, n=1, wait=0.0, work=2.0)
  assert watch.lap(8, flops=8e12)["mfu"] == 0.5


def test_mfu():
  assert clock.mfu(197e12, 2.0, "TPU v5 lite", 1) == 0.5
  assert clock.mfu(8 * 989e12, 1.0, "NVIDIA H200", 8) == 1.0
  assert clock.mfu(1e12, 1.0, "cpu", 1) is None


class Compiled:
  def __init__(self, cost):
    self.cost = cost

  def cost_analysis(self):
    if self.cost is None:
      raise NotImplementedError
    return self.cost


def test_flops_of_a_step_are_the_compilers_on_all_devices():
  config = base.get_config()
  a = jnp.zeros((16, 32))
  compiled = jax.jit(lambda a: a @ a.T).lower(a).compile()
  assert clock.step_flops(compiled, config) == 8 * 2 * 16 * 32 * 16
  assert clock.step_flops(Compiled([{"flops": 5.0}]), config) == 40
  by_shape = clock.model_flops(config)
  for cost in (None, {}, {"flops": -1.0}):
    assert clock.step_flops(Compiled(cost), config) == by_shape


@pytest.mark.parametrize(
  "change", [{"model.scan": True}, {"model.remat": "full"}, {"microbatches": 2}]
)
def test_loops_and_recomputation_are_counted_by_shape(change):
  config = base.get_config()
  config.update_from_flattened_dict(change)
  got = clock.step_flops(Compiled({"flops": 1.0}), config)
  assert got == clock.model_flops(base.get_config())


def test_the_library_calls_of_gpus_are_counted_by_shape(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  config = base.get_config()
  assert clock.step_flops(Compiled({"flops": 1.0}), config) == clock.model_flops(config)


def test_model_flops_of_a_clip_by_hand():
  config = base.get_config()
  config.batch_size = 2
  config.model.embed_dim = 4
  config.model.trunk.update({"width": 8, "depth": 3, "mlp": 32, "heads": 2})
  config.model.modalities.image.update({"size": (4, 6, 3), "patch": (2, 2)})
  config.model.modalities.text.length = 5
  config.model.modalities.text.trunk = {"depth": 1}

  def tower(n, depth, stem):
    block = 2 * 4 * 8 * 8 + 2 * 2 * n * 8 + 2 * 2 * 8 * 32
    return n * (depth * block + stem) + 2 * 8 * 4

  by_hand = tower(6, 3, 2 * 2 * 2 * 3 * 8) + tower(5, 1, 0)
  assert clock.model_flops(config) == 3 * 2 * by_hand
  # One expert a token costs what the dense MLP does, and its router.
  config.model.shared_trunk = True
  config.model.modalities.text.trunk = {}
  dense = clock.model_flops(config)
  config.model.moe.update({"every": 2, "experts": 4, "k": 1})
  config.model.moe.min_experts = {}
  config.model.moe.losses = {"importance": 1.0}
  assert clock.model_flops(config) - dense == 3 * 2 * (6 + 5) * 2 * 8 * 4


def test_memory_of_the_fullest_device(monkeypatch):
  class Device:
    def __init__(self, stats):
      self.memory_stats = lambda: stats

  assert clock.memory() == {}  # a CPU does not tell
  full = {"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}
  devices = [Device({"bytes_in_use": 1, "bytes_limit": 2**34}), Device(full)]
  monkeypatch.setattr(clock.jax, "local_devices", lambda: devices)
  assert clock.memory() == {
    "hbm_used_gib": 1.0,
    "hbm_peak_gib": 3.0,
    "hbm_limit_gib": 16.0,
  }


def test_model_flops_agree_with_the_compiler_on_a_real_tower():
  config = base.get_config()
  config.batch_size = 8
  config.model.trunk.update({"width": 64, "depth": 1, "heads": 2, "mlp": 256})
  del config.model.modalities.text
  config.model.moe.losses = {}
  config.model.moe.min_experts = {}
  model = towers.build(config.model)
  batch = {"image": jnp.zeros((8, 64, 64, 3))}
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]

  def forward(params):
    return model.apply({"params": params}, batch)[0]["image"].pooled

  cost = jax.jit(forward).lower(params).compile().cost_analysis()
  # The rest is softmax, norms and the activation: a few per cent at this width.
  assert clock.model_flops(config) / 3 == pytest.approx(cost["flops"], rel=0.1)
