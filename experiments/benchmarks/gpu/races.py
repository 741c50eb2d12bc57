"""Repeats a kernel on equal inputs and compares every bit, to find races.

A race between the threads of a kernel, such as a read of shared memory before
the write has arrived, seldom shows in one run. So the outputs are computed many
times from the same inputs, over long sequences, or more often over short ones,
and every bit is compared with the first run's. The kernels sum in a fixed
order, so that any difference fails the case. (XLA computes `d_params` and
`d_xs` by products after the kernel. A difference in these alone also fails the
case, but the error may be XLA's.) An output that is not finite also fails the
case, since it would hide a race.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.gpu.case import KernelCase, Prepared, Result
from experiments.benchmarks.gpu.inputs import layer_program, random_inputs


@dataclass(frozen=True)
class Race(KernelCase):
  """A kernel on the same inputs, again and again."""

  with_mask_and_reset: bool = False
  repeats: int = 200

  needs_kernels = True

  @property
  def name(self) -> str:
    """The name of the case, as it is printed."""
    return (
      super().name
      + ", masks and resets" * self.with_mask_and_reset
      + f", {self.repeats} repeats"
    )

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return the kernel's program, and the one that compares its outputs."""
    del left_out  # the supervisor skips a case whose kernel is in it
    inputs = jax.device_put(
      random_inputs(self.cell, *self.sizes, self.with_mask_and_reset, 0)
    )
    program = layer_program(self.cell, self.dtype, reverse=False, kernel=True)
    outputs = jax.eval_shape(program, inputs)
    lowered = {
      "kernel": jax.jit(program).lower(inputs),
      "compare": jax.jit(differing).lower(outputs, outputs),
    }

    def finish(programs, errors):
      if errors:
        why = "; ".join(f"{k}: {e}" for k, e in errors.items())
        return self._result([why])
      kernel, compare = programs["kernel"], programs["compare"]
      first = kernel(inputs)
      differ = [
        jax.device_get(compare(first, kernel(inputs)))
        for _ in range(self.repeats)
      ]
      return self._result(self._problems(first, np.array(differ)))

    return Prepared(lowered, finish)

  def _problems(self, outputs: Any, differ: np.ndarray) -> list[str]:
    """Return a text for each problem; differ is bool [repeats, arrays]."""
    problems = []
    leaves = jax.tree.leaves_with_path(outputs)
    for (path, leaf), count in zip(leaves, differ.sum(0).tolist(), strict=True):
      name = jax.tree_util.keystr(path).lstrip(".")
      if count:
        problems.append(f"{name} differs in {count} of {self.repeats} repeats")
      if not np.isfinite(np.asarray(leaf, np.float32)).all():
        problems.append(f"{name} is not finite")
    return problems

  def _result(self, problems: list[str]) -> Result:
    row = {
      "part": "gpu race",
      "case": self.name,
      "failed": bool(problems),
      "differences": problems,
    }
    text = f"{self.name}: {', '.join(problems)}"
    return Result([row], {}, [text] if problems else [])


def differing(a: Any, b: Any) -> jax.Array:
  """Return for each array of two trees whether any bit differs, [arrays]."""

  def bits(x):
    return lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")

  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return jnp.stack([jnp.any(bits(x) != bits(y)) for x, y in pairs])
