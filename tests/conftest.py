"""Settings of the whole suite: strict JAX, 8 host devices, parsed flags."""

import os
import pathlib

os.environ["MPLBACKEND"] = "Agg"

import jax
import pytest
from absl import flags

ROOT = pathlib.Path(__file__).parents[1]

# All before the backend starts.  JAX_PLATFORMS=cuda tests the kernels on a GPU.
if not os.environ.get("JAX_PLATFORMS"):
  jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of the suite's time is compilation: keep what was compiled.
if not jax.config.jax_compilation_cache_dir:
  jax.config.update(
    "jax_compilation_cache_dir",
    str(pathlib.Path.home() / ".cache/fedjax_het/xla-tests"),
  )
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """A file's tests run in one worker, which compiles its programs once.

  The contract is cut by method.  (Groups by mark, `--dist loadgroup`, did
  nothing with pytest 9.2 and pytest-xdist 3.8.)
  """
  from xdist.scheduler import LoadScopeScheduling

  class ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid):
      file, _, test = nodeid.partition("::")
      if file.endswith("test_contract.py"):
        return file + test.rstrip("]").rpartition("[")[2].rpartition("-")[2]
      return file

  return ByFile(config, log)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
  """Forgets compiled programs after a module, once they fill 2 GiB."""
  yield
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  if pages * os.sysconf("SC_PAGE_SIZE") > 2**31:
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def parsed_flags():
  """Lets tests read absl flags: pytest never parses them."""
  flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def source_env():
  """Environment of a subprocess that imports from this checkout."""
  path = [ROOT, ROOT / "kernels", ROOT / "experiments"]
  return {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, path)),
    "JAX_PLATFORMS": jax.config.jax_platforms,
  }
