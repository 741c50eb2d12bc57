"""Whether a kernel computes what the scan does: values and every gradient.

An array's error is the norm of its difference from the scan's, divided by the
norm of the scan's. The tolerances are below 1 %, so that an array that is 1.01
times what it should be fails.

bfloat16: kernel and scan round the same operands, but the kernel's tanh is an
instruction with an error of 2⁻¹¹, after which one h in ten or so is rounded to
the neighbouring number, 2⁻⁸ away. With such a tanh the interpreted kernels
differ from the scan by up to 1.6e-3 (lstm), 1.4e-3 (gru) and 2.7e-3 (rnn).

float32: the kernel's operands are TF32, with 10 bits of mantissa, and those of
the scan are float32. Operands cut off after 10 bits, in a recurrence on the
CPU, give errors of up to 1.1e-3, for T from 24 to 512.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.gpu.case import KernelCase, Prepared, Result
from experiments.benchmarks.gpu.inputs import layer_program, random_inputs

TOLERANCE = {"bfloat16": 5e-3, "float32": 2e-3}


@dataclass(frozen=True)
class Check(KernelCase):
  """A kernel against the scan, for several seeds."""

  with_mask_and_reset: bool = False
  reverse: bool = False
  seeds: int = 3

  needs_kernels = True

  @property
  def name(self) -> str:
    """The name of the case, as it is printed."""
    return (
      super().name
      + ", masks and resets" * self.with_mask_and_reset
      + ", reverse" * self.reverse
    )

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return the programs of the kernel and of the scan."""
    del left_out  # the supervisor skips a case whose kernel is in it
    inputs = [
      random_inputs(self.cell, *self.sizes, self.with_mask_and_reset, seed)
      for seed in range(self.seeds)
    ]
    lowered = {
      name: jax.jit(
        layer_program(self.cell, self.dtype, self.reverse, name == "kernel")
      ).lower(inputs[0])
      for name in ("kernel", "scan")
    }

    def finish(programs, errors):
      if errors:
        return self._failed("; ".join(f"{k}: {e}" for k, e in errors.items()))
      worst = max(
        worst_error(programs["kernel"](each), programs["scan"](each))
        for each in inputs
      )
      return self._result(*worst)

    return Prepared(lowered, finish)

  def _result(self, error: float, array: str) -> Result:
    allowed = TOLERANCE[self.dtype]
    failed = not error <= allowed
    row = self._row(failed) | {
      "error": error if math.isfinite(error) else None,  # JSON has no inf
      "allowed": allowed,
      "array": array,
    }
    text = f"{array} differs by {error:.1e}, allowed is {allowed:.0e}"
    return Result([row], {}, [f"{self.name}: {text}"] if failed else [])

  def _failed(self, why: str) -> Result:
    row = self._row(True) | {"why": why}
    return Result([row], {}, [f"{self.name}: {why}"])

  def _row(self, failed: bool) -> dict[str, Any]:
    return {"part": "gpu check", "case": self.name, "failed": failed}


def worst_error(actual: Any, expected: Any) -> tuple[float, str]:
  """Return the largest relative error of any array, and the array's name.

  An array with numbers that are not finite has an infinite error. Where the
  expected array is zero, the error is the norm of the actual one.
  """
  worst = (0.0, "no array")
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for (path, b), a in zip(leaves, jax.tree.leaves(actual), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = float(np.linalg.norm(a - b)) / (float(np.linalg.norm(b)) or 1.0)
    error = error if np.isfinite(error) else float("inf")
    worst = max(worst, (error, jax.tree_util.keystr(path).lstrip(".")))
  return worst
