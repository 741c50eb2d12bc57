"""The GPU kernels on a CPU: in Pallas' interpreter, or as stand-ins.

A program is compiled for a GPU where JAX's CUDA packages are installed.
"""

from contextlib import contextmanager
from importlib.metadata import entry_points

import jax
import pytest

from lstm_jax.cells.platform import traced_for
from lstm_jax.sequence import _unroll
from lstm_jax.sequence.implementation import VERSIONS
from lstm_jax.sequence.scan import scan_sequence

NEEDS_KERNELS = pytest.mark.skipif(
  not VERSIONS[0] <= jax.__version_info__ < VERSIONS[1],
  reason=f"the GPU kernels do not take jax {jax.__version__}",
)
HAS_CUDA = any("cuda" in p.name for p in entry_points(group="jax_plugins"))
NEEDS_CUDA = pytest.mark.skipif(
  not HAS_CUDA, reason="JAX's CUDA packages are not installed"
)


@contextmanager
def interpreted(**params):
  """Run kernels in Pallas' interpreter: 1 to 3 s for each shape.

  Args:
    **params: those of `plgpu.InterpretGPUParams`.
  """
  from jax.experimental.pallas import mosaic_gpu as plgpu

  # As in a user's program: tests/conftest.py has stricter defaults.
  with (
    plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**params)),
    traced_for("cuda"),
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    yield


@contextmanager
def as_if_on_an_h100(monkeypatch):
  """Trace for an H100 with a version of JAX that has the kernels."""
  monkeypatch.setattr(jax, "__version_info__", VERSIONS[0])
  with traced_for("cuda"):
    yield


def count_kernels(monkeypatch):
  """Replace the kernels by scans; return a list that grows with each call.

  Its elements are (the cell, whether the sequence is reversed, T, how the
  kernels would divide the layer).
  """
  calls = []

  def scan(cell, options, plan, params, state, xs, flags):
    assert flags is None, "the stand-in has no masks and no resets"
    calls.append((cell, options.reverse, xs.shape[0], plan))
    return scan_sequence(cell, options, params, state, xs, ())

  monkeypatch.setattr(_unroll, "scan_fused", scan)
  # Not compiled: the stand-in is called whenever the kernel would be.
  monkeypatch.setattr(_unroll, "_apply", _unroll._apply.__wrapped__)
  return calls
