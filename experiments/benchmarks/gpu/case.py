"""What a case is: programs to compile, and what to do with them.

A case says which programs it needs before any of them is compiled, so that a
worker can compile the programs of a case, or of several, at the same time. It
travels between processes, so it is a frozen dataclass of sizes and names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from experiments.benchmarks.tables import Row
from experiments.trainer.config import CELLS
from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.implementation import COUNTS

# Why a kernel is left out, or a case that needs its kernels is skipped.
ENDED = "a case with a kernel of this kind has crashed or hung"
Programs = dict[str, Any]  # compiled programs by name


class Result(NamedTuple):
  """What a case found."""

  rows: list[Row]
  skipped: dict[str, str]  # what was not measured, and why
  failures: list[str]  # a line each


class Prepared(NamedTuple):
  """A case whose programs are not yet compiled."""

  lowered: dict[str, Any]  # by name, as `jax.jit(f).lower(...)` returns them
  # (compiled programs, messages of those that do not compile), each by name
  finish: Callable[[Programs, dict[str, str]], Result]
  # What was skipped or failed before; where `finish` raises, it still counts.
  before: Result = Result([], {}, [])


class Case(Protocol):
  """A check, or programs that are timed together."""

  @property
  def name(self) -> str:
    """The name of the case, as it is printed."""

  @property
  def kernels(self) -> frozenset[str]:
    """The kinds of kernels that it runs, as `kernel_kind` names them."""

  @property
  def needs_kernels(self) -> bool:
    """Whether the case has nothing to run without its kernels."""

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return its programs, but none with a kernel of a kind in `left_out`."""


class DeviceLost(Exception):
  """The device no longer answers; the next case needs a new process."""


def kernel_kind(
  cell: str, hidden_size: int, batch_size: int, dtype: str
) -> str | None:
  """Return the kind of a layer's kernel, or None if H is too large for one.

  The programs of kernels of one kind differ only in sizes and options, such as
  masks: if one of them hangs, the others probably do too.
  """
  size = jnp.dtype(dtype).itemsize
  plan = limits.divide(COUNTS[CELLS[cell]], hidden_size, batch_size, size)
  if plan is None:
    return None
  place = "one block" if plan.cluster == 1 else "cluster"
  return f"{cell} in {place}, {dtype}"


@dataclass(frozen=True)
class LayerCase:
  """What cases of one layer have in common: its cell and its sizes."""

  cell: str
  hidden_size: int
  seq_len: int
  batch_size: int

  @property
  def sizes(self) -> tuple[int, int, int]:
    """H, T and B."""
    return self.hidden_size, self.seq_len, self.batch_size

  @property
  def name(self) -> str:
    """The name of the layer, as it is printed."""
    return (
      f"{self.cell} H {self.hidden_size}, T {self.seq_len}, B {self.batch_size}"
    )

  def labels(self, part: str, mode: str) -> Row:
    """Return the entries of a row that identify the layer.

    Args:
      part: the entry "part" of the row, such as "gpu layer".
      mode: "forward" or "gradient".
    """
    return {
      "part": part,
      "cell": self.cell,
      "backward": mode == "gradient",
      "hidden_size": self.hidden_size,
      "seq_len": self.seq_len,
      "batch_size": self.batch_size,
    }


@dataclass(frozen=True)
class KernelCase(LayerCase):
  """A case of one layer's kernel, if there is one for its sizes."""

  dtype: str  # of the products' operands; the weights are float32

  @property
  def name(self) -> str:
    """The name of the layer and its dtype, as it is printed."""
    return f"{super().name}, {self.dtype}"

  @property
  def kernels(self) -> frozenset[str]:
    """The kind of its kernel; none if there is no kernel for its sizes."""
    kind = kernel_kind(self.cell, self.hidden_size, self.batch_size, self.dtype)
    return frozenset([kind] if kind else [])


def compute_dtype(dtype: str) -> Any:
  """Return the `compute_dtype` of `unroll` for operands of this dtype."""
  return None if dtype == "float32" else jnp.dtype(dtype)


def operands_of(dtype: str) -> str:
  """Return the operands' format on a GPU, by JAX's default: float32 is TF32."""
  return "TF32" if dtype == "float32" else dtype


def reason(error: Exception) -> str:
  """Return an error's class and the first line of its message.

  Raises:
    DeviceLost: the error is JAX's, and the device no longer answers.
  """
  lines = str(error).strip().splitlines()
  text = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
  if isinstance(error, jax.errors.JaxRuntimeError):
    try:
      (jnp.zeros((8,)) + 1).block_until_ready()
    except jax.errors.JaxRuntimeError:
      raise DeviceLost(text) from error
  return text
