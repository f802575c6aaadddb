"""Where compiled programs are kept: a run that starts again need not compile."""

from etils import epath
import jax


def keep(where: str, workdir: str) -> None:
  """Has JAX keep what it compiles; call it before anything is compiled.

  JAX_COMPILATION_CACHE_DIR goes before. On several hosts, which must all see the
  folder, process 0 writes and all read.

  Args:
    where: config.compilation_cache; "{workdir}" is replaced, "" keeps nothing.
    workdir: of the run.
  """
  if not where or jax.config.values["jax_compilation_cache_dir"]:
    return
  folder = where.replace("{workdir}", workdir)
  if "://" in folder:
    # JAX writes there through etils; XLA's autotuning results go to disks only.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
  else:
    folder = str(epath.Path(folder).absolute())
  jax.config.update("jax_compilation_cache_dir", folder)
