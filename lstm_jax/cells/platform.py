"""The kind of device that a program is traced for: a CPU or a GPU.

A CPU loses time on copies of large arrays, and on values that are computed
again in each of their consumers. A GPU loses time on launches: each kernel of a
time step takes microseconds to start, whatever it computes. So a few parts of a
time step are written in two ways, one of which is chosen while it is traced.

The device is JAX's default one (`jax.default_device`). `traced_for` states
another, for programs that are compiled for a device elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
  """Return the platform of `traced_for`, or else JAX's default platform.

  Within `traced_for("cuda")` it is "cuda", even if this machine has no GPU.
  Else a GPU is "gpu", as JAX calls it. To test for a CPU, use `is_cpu`.
  """
  device = default_device()
  name = getattr(device, "platform", device)
  name = "gpu" if name == "cuda" else name
  return _platform.get() or name or jax.default_backend()


def default_device() -> Any:
  """Return `jax.default_device`: a device, the name of a platform, or None."""
  config: Any = jax.config
  return config.jax_default_device


def is_cpu() -> bool:
  """Return whether the program that is being traced is for a CPU."""
  return platform() == "cpu"


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
  """Trace programs for a platform, "cpu" or "cuda", within this context."""
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def computed_once(tree: Tree) -> Tree:
  """Return a tree that a CPU computes once, not in each of its consumers.

  XLA would fuse its computation into every consumer. A GPU is left to do so:
  computing a value again costs it less than launching a kernel.
  """
  return lax.optimization_barrier(tree) if is_cpu() else tree


_programs: list[Any] = []  # of the functions that `compiled` returned


def compiled(f: Callable, num_static: int) -> Callable:
  """Return f as one program, compiled once for all calls of the same shapes.

  Outside `jax.jit`, f itself would be compiled operation by operation, and a
  loop in it anew at every call. Within a function that is compiled, the program
  is inlined.

  Args:
    f: a function of trees of arrays.
    num_static: how many of its first arguments are static: hashable values.
  """

  @partial(jax.jit, static_argnums=range(num_static + 2), inline=True)
  def program(platform, types, *args):
    # Both are static: f may depend on the platform, and NamedTuples of
    # different types, as a user's cells may be, can be equal.
    del platform, types
    return f(*args)

  def call(*args):
    types = jax.tree.structure(args[:num_static])
    return program(platform(), types, *args)

  _programs.append(program)
  return wraps(f)(call)


def clear_programs() -> None:
  """Have `compiled` functions traced anew, after a change of their code."""
  for program in _programs:
    program.clear_cache()
