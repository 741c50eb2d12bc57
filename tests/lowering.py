"""Lower a hundred programs in one MLIR context, where JAX 0.10 makes a hundred.

To make and end a context takes as long as the rest of lowering a small program,
of which the tests have some 60,000. JAX 0.11 and later reuse a context for ten
programs. A context only holds the types, constants and locations of its
programs, each once. Sharing it changes no program.
"""

import threading

import jax
from jax._src.interpreters import mlir

TIMES = 100  # a context keeps all constants of its programs
make, local = mlir.make_ir_context, threading.local()


def reused():
  """Return the context of this thread, a new one for every TIMES calls."""
  left = getattr(local, "left", 0)
  if not left:
    local.context, left = make(), TIMES
  local.left = left - 1
  return local.context


if jax.__version_info__ < (0, 11):
  mlir.make_ir_context = reused
