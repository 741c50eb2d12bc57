"""How the gradient of an unrolled sequence is computed: the `adjoint` argument.

  Explicit()                        the gradient derived by hand (scan.py)
  Explicit(chunk=C)                 the same, with one state saved per chunk
  Explicit(residuals="recompute")   the same, with only the states saved
  Step()                            autodiff of a scan of `cell.step`, whose own
                                    gradient is derived by hand
  Autodiff()                        JAX's gradient of the same forward pass

All compute the same numbers, up to rounding. They differ in speed, in memory,
and in what they support: only with `Autodiff` does `unroll` have a forward mode
(`jax.jvp`). Forward mode over a gradient (`jax.hessian`) works with each, but
not with the GPU kernels (`implementation`).

  >>> Explicit(residuals="recompute", chunk=32)
  Explicit(residuals='recompute', chunk=32)
"""

from dataclasses import dataclass
from typing import Literal

from lstm_jax.cells.checks import check_count

ResidualPolicy = Literal["gates", "recompute"]


@dataclass(frozen=True)
class Explicit:
  """The gradient derived by hand, over the whole sequence.

  Attributes:
    residuals: what the forward saves for the backward. "gates": the gates of
      every time step; with a chunk, only the state before each chunk, from
      which the backward runs the chunk again. "recompute": the state at
      every time step, from which the backward recomputes the gates of a chunk
      in one product. See `checkpointing` for the memory of each.
    chunk: C, the number of time steps whose gates the backward holds at once.
      None: all T with "gates"; with "recompute" the fewest with C·B ≥ 1,024
      rows, or 32 if T or B is symbolic (`jax.export`).

  Raises:
    ValueError: `residuals` is neither of the two, or `chunk` is not an
      integer ≥ 1.
  """

  residuals: ResidualPolicy = "gates"
  chunk: int | None = None

  def __post_init__(self) -> None:
    if self.residuals not in ("gates", "recompute"):
      raise ValueError(
        f"residuals must be gates or recompute, got {self.residuals!r}"
      )
    if self.chunk is not None:
      chunk = check_count("chunk", self.chunk)
      object.__setattr__(self, "chunk", chunk)  # self is frozen


@dataclass(frozen=True)
class Step:
  """Autodiff of a scan of `cell.step`, whose gradient is derived by hand."""


@dataclass(frozen=True)
class Autodiff:
  """JAX's own gradient of the forward pass; also has a forward mode."""


Adjoint = Explicit | Step | Autodiff


def check_adjoint(adjoint: object) -> None:
  """Raise ValueError unless adjoint is an Explicit, a Step or an Autodiff."""
  if not isinstance(adjoint, Adjoint):
    raise ValueError(
      "adjoint must be Explicit(), Step() or Autodiff() of lstm_jax, "
      f"got {adjoint!r}"
    )
