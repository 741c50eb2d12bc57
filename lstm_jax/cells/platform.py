"""The platform that a program is traced for: a CPU, or one that runs kernels.

A CPU is slowed down by copies of large arrays and by computing a value again in
each of its consumers. A GPU waits for launches: each kernel of a time step
takes microseconds to start, whatever it computes. So the same time step is
written in two ways, chosen while it is traced.

By default the platform is that of JAX's default backend. `traced_for` states
another one, for programs that are lowered or compiled for a device elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")
_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


def is_cpu() -> bool:
  """Return whether the program being traced is for a CPU."""
  return (_PLATFORM.get() or jax.default_backend()) == "cpu"


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
  """Trace programs for a platform, such as "cuda", within this context."""
  token = _PLATFORM.set(platform)
  try:
    yield
  finally:
    _PLATFORM.reset(token)


def computed_once(tree: Tree) -> Tree:
  """Return a tree that a CPU computes once, not in each of its consumers."""
  return lax.optimization_barrier(tree) if is_cpu() else tree


def in_one_kernel(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Return arrays [..., k·H], which a GPU computes together.

  XLA puts values of one shape into one kernel, so the arrays are computed in
  pieces [..., H], and joined where they are used.
  """
  if is_cpu():
    return arrays
  width = min(a.shape[-1] for a in arrays)
  pieces = [jnp.split(a, a.shape[-1] // width, axis=-1) for a in arrays]
  pieces = lax.optimization_barrier(pieces)
  return tuple(jnp.concatenate(parts, axis=-1) for parts in pieces)
