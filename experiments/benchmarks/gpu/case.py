"""What a case is: programs to compile, and what to do with them.

A case says which programs it needs before any of them is compiled, so that a
worker can compile the programs of a case, or of several, at the same time. It
travels between processes, so it is a frozen dataclass of sizes and names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from experiments.benchmarks.tables import Row
from experiments.trainer.config import CELLS
from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.implementation import COUNTS

ENDED = "another case with its kernel has ended a worker"  # why one is skipped
Programs = dict[str, Any]  # compiled programs by name


class Result(NamedTuple):
  """What a case found."""

  rows: list[Row]
  skipped: dict[str, str]  # what was not measured, and why
  failures: list[str]  # a line each


class Prepared(NamedTuple):
  """A case whose programs are not yet compiled."""

  lowered: dict[str, Any]  # by name, as `jax.jit(f).lower(...)` returns them
  finish: Callable[[Programs, dict[str, str]], Result]  # (programs, errors)


class Case(Protocol):
  """A check, or programs that are timed together."""

  @property
  def name(self) -> str:
    """What is printed of the case."""

  @property
  def kernels(self) -> frozenset[str]:
    """The kinds of kernels that it runs, as `kernel_kind` names them."""

  @property
  def needs_kernels(self) -> bool:
    """Whether nothing is left of it without its kernels."""

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return its programs, without those of these kinds of kernels."""


class DeviceLost(Exception):
  """The device no longer answers; the next case needs a new process."""


def kernel_kind(
  cell: str, hidden_size: int, batch_size: int, dtype: str
) -> str | None:
  """Return which kernel a layer has, or None if it is too large for one.

  Kernels of one kind share their program but for its sizes: if one of them
  hangs, the others probably do.
  """
  size = jnp.dtype(dtype).itemsize
  plan = limits.divide(COUNTS[CELLS[cell]], hidden_size, batch_size, size)
  if plan is None:
    return None
  place = "one block" if plan.cluster == 1 else "cluster"
  return f"{cell} in {place}, {dtype}"


def kernel_kinds(layer: Any) -> frozenset[str]:
  """Return the kinds of the kernels of a case that is one layer, or a model.

  Args:
    layer: has a cell, a hidden_size, a batch_size and a dtype.
  """
  sizes = layer.hidden_size, layer.batch_size
  kind = kernel_kind(layer.cell, *sizes, layer.dtype)
  return frozenset([kind] if kind else [])


def layer_labels(part: str, layer: Any, mode: str) -> Row:
  """Return what tells the rows of a layer from others: part, mode and sizes.

  Args:
    part: of the benchmark.
    layer: has a cell, a hidden_size, a seq_len and a batch_size.
    mode: "forward" or "gradient".
  """
  return {
    "part": part,
    "cell": layer.cell,
    "backward": mode == "gradient",
    "hidden_size": layer.hidden_size,
    "seq_len": layer.seq_len,
    "batch_size": layer.batch_size,
  }


def compute_dtype(dtype: str) -> Any:
  """Return the `compute_dtype` of `unroll` for operands of this dtype."""
  return None if dtype == "float32" else jnp.dtype(dtype)


def reason(error: Exception) -> str:
  """Return an error as one line; raise DeviceLost if the device is gone."""
  lines = str(error).strip().splitlines()
  text = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
  if isinstance(error, jax.errors.JaxRuntimeError):
    try:
      (jnp.zeros((8,)) + 1).block_until_ready()
    except jax.errors.JaxRuntimeError:
      raise DeviceLost(text) from error
  return text
