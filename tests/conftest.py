import gc
import os
import shutil
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

# Compiling is most of what the tests do, and they time nothing: have XLA
# optimise less, which changes results by rounding only. XLA_FLAGS="" runs the
# tests on what a user's program compiles to; .ci/run does both.
flags = (
  "--xla_backend_optimization_level=0"
  " --xla_cpu_parallel_codegen_split_count=1"  # each worker has one core
  # No autotuning: there is no H100 here to time its programs on. They have the
  # same launches and buffers without it, and compile in half the time.
  " --xla_gpu_autotune_level=0"
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
  flags += " --xla_cpu_use_fusion_emitters=false"  # unknown to later versions
os.environ.setdefault("XLA_FLAGS", flags)

# A training run of the tests waits longer for its files to reach the disk than
# it computes: keep them in memory, where there is room.
MEMORY = Path("/dev/shm")
ROOM = 2 * 2**30  # bytes, more than the tests fill
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
  os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# The workers, the processes that tests start, and later runs of the tests share
# one directory of compiled programs. JAX writes an entry in place, so that
# another process may find half of it: that process then warns, and compiles the
# program itself.
CACHE = "JAX_COMPILATION_CACHE_DIR"
FULL = 2**30  # bytes; a whole run writes a fifth of it
HALF_WRITTEN = "Error reading persistent compilation cache entry"
ROOT = Path(__file__).parents[1]
WRITABLE = os.access(ROOT, os.W_OK)  # a checkout may be read-only
# Not in a worker, which inherits it.
if CACHE not in os.environ and WRITABLE:
  cache = ROOT / ".pytest_cache" / "programs"
  cache.mkdir(parents=True, exist_ok=True)
  with suppress(OSError):  # another run of the tests may empty it, too
    entries = [entry for entry in cache.iterdir() if entry.is_file()]
    if sum(entry.stat().st_size for entry in entries) > FULL:
      for entry in entries:
        entry.unlink(missing_ok=True)
  os.environ[CACHE] = str(cache)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  os.environ.setdefault("PYTHONWARNINGS", f"ignore:{HALF_WRITTEN}")
  if sys.dont_write_bytecode:
    # As in many containers. Without what follows, each interpreter that a test
    # starts would compile all modules that it imports, 1.5 s of its 2.6 s, and
    # each worker those of the tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # not there with -B
    sys.dont_write_bytecode = False
    place = cache.with_name("modules")
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(place)

import jax
import pytest
from hypothesis import settings

import tests.lowering  # noqa: F401 - lowers programs faster
from lstm_jax.cells.platform import clear_programs

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

# Without a database of failed examples, nothing is written to a checkout.
database = {} if WRITABLE else {"database": None}
settings.register_profile(
  "everyday", max_examples=20, deadline=None, **database
)
settings.load_profile("everyday")

MAPS = Path("/proc/self/maps")
MANY_MAPS = 40_000  # of the 65,530 memory maps that Linux lets a process have


def pytest_configure(config):
  config.addinivalue_line("filterwarnings", f"ignore:{HALF_WRITTEN}")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
  """Of a test with `everyday(n)`, make all cases but n exhaustive.

  Exhaustive cases do not run by default. Cases that are exhaustive by
  themselves are not among the n, which `pick` chooses.
  """
  cases = defaultdict(list)
  for item in items:
    marker = item.get_closest_marker("everyday")
    if marker and not item.get_closest_marker("exhaustive"):
      test = item.nodeid.partition("[")[0]
      cases[test, marker.args[0]].append(item)
  for (_, count), group in cases.items():
    specs = [getattr(item, "callspec", None) for item in group]
    kept = pick(count, [spec.params if spec else {} for spec in specs])
    for k, item in enumerate(group):
      if k not in kept:
        item.add_marker(pytest.mark.exhaustive)


def pick(count, cases):
  """Return the indices of up to `count` cases; a case is {parameter: value}.

  The next case is always one whose values were picked least often before, so
  that every parameter takes as many values as it can. Of several such cases,
  the one farthest from all that were picked is taken: neighbours are alike.
  """
  left, picked, times = list(range(len(cases))), [], Counter()

  def values(k):
    return [(name, repr(value)) for name, value in cases[k].items()]

  def cost(k):
    distance = min((abs(k - other) for other in picked), default=0)
    return sum(times[value] for value in values(k)), -distance

  for _ in range(min(count, len(cases))):
    picked.append(min(left, key=cost))
    left.remove(picked[-1])
    times.update(values(picked[-1]))
  return picked


def pytest_collection_finish():
  """Collect garbage seldom, and skip modules: collections took 6 % of a run."""
  gc.freeze()
  gc.set_threshold(20_000, 20, 50)


@pytest.fixture
def no_collection():
  """Collect no garbage: finalizers fail near the recursion limit.

  For a test whose text has so many brackets that its parser reaches the limit.
  """
  gc.disable()
  yield
  gc.enable()


@pytest.fixture(autouse=True, scope="module")
def few_maps():
  """Release all compiled programs after a module, if many maps are in use."""
  yield
  if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
    jax.clear_caches()
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def traced_anew():
  """Have programs traced anew, in and after a test that changes their code."""
  clear_programs()
  yield
  clear_programs()


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def garbage_collected():
  """Collect, after a test, the coroutines that a failed read of orbax leaves.

  They then warn: a test with this fixture ignores
  PytestUnraisableExceptionWarning.
  """
  gc.freeze()  # skip older objects: to look through them takes 2 s
  yield
  gc.collect()
