"""Where compiled programs are kept."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from training import compiled

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")


@pytest.fixture
def settings():
  """JAX's settings, as of a new process, put back afterwards."""
  before = {name: getattr(jax.config, name) for name in NAMES}
  jax.config.update(NAMES[0], None)
  yield lambda: [getattr(jax.config, name) for name in NAMES]
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_folder_is_that_of_the_config_but_for_the_environments(settings, tmp_path):
  xla = settings()[1]
  compiled.keep("", "runs/x")
  assert settings() == [None, xla]
  compiled.keep("{workdir}/cache", str(tmp_path))
  assert settings() == [f"{tmp_path}/cache", xla]
  compiled.keep("elsewhere", str(tmp_path))  # as if the environment had named it
  assert settings()[0] == f"{tmp_path}/cache"


def test_a_relative_folder_is_made_absolute_and_a_bucket_is_not(settings):
  compiled.keep("{workdir}/cache", "runs/x")
  assert settings()[0] == str(pathlib.Path("runs/x/cache").absolute())
  jax.config.update(NAMES[0], None)
  compiled.keep("{workdir}/cache", "gs://bucket/x")
  assert settings() == ["gs://bucket/x/cache", "none"]


def test_a_program_is_kept_there(tmp_path):
  code = (
    "import sys, jax; from training import compiled; compiled.keep('{workdir}/c', "
    "sys.argv[1]); jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); "
    "jax.jit(lambda x: x + 1)(1.0)"
  )
  env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  command = [sys.executable, "-c", code, str(tmp_path)]
  subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=300)
  assert list((tmp_path / "c").glob("*-cache"))
