"""The report of a check of gradients: errors of each tensor, as a table."""

from typing import NamedTuple


class Error(NamedTuple):
  """The largest error over some coordinates, or over some directions."""

  coordinates: int  # how many coordinates, or directions, were compared
  absolute: float
  relative: float  # divided by a scale of the tensor (`_gradcheck`)
  where: tuple[int, ...]  # of `relative`: index in the tensor, or (direction,)


class TensorReport(NamedTuple):
  """The errors of one tensor's gradient, one for each comparison.

  explicit is the gradient under test, central differences are along
  coordinates, and directional ones along random directions. autodiff_central
  and autodiff_directional say how exact the differences are; `passes` does not
  read them.
  """

  # Its path in x, the input of `gradcheck`, such as "params.w_x"; "" if x is an
  # array.
  name: str
  size: int
  explicit_autodiff: Error
  explicit_central: Error
  autodiff_central: Error
  explicit_directional: Error
  autodiff_directional: Error


class Report(NamedTuple):
  """The errors of every tensor's gradient, and of the function's value."""

  # Largest difference in an output, divided by max(1, its largest magnitude).
  value: float
  tensors: tuple[TensorReport, ...]
  dtype: str = "float64"  # of the tensors; commas between several

  def __str__(self) -> str:
    """Return a table of relative errors, one line per tensor."""
    names = [t.name or "x" for t in self.tensors]
    width = max(map(len, (*names, "(outputs)")))
    lines = [f"{'tensor':{width}}  vs autodiff  vs central  vs directional"]
    for name, t in zip(names, self.tensors, strict=True):
      errors = t.explicit_autodiff, t.explicit_central, t.explicit_directional
      a, b, c = (f"{e.relative:.1e}" if e.coordinates else "-" for e in errors)
      lines.append(f"{name:{width}}  {a:>11}  {b:>10}  {c:>14}")
    return "\n".join((*lines, f"{'(outputs)':{width}}  {self.value:>11.1e}"))

  def passes(
    self, autodiff: float | None = None, differences: float | None = None
  ) -> bool:
    """Return whether the explicit gradient is within its tolerances.

    Args:
      autodiff: tolerance of the explicit gradient, and of the outputs, against
        autodiff; None for 1e-12.
      differences: tolerance of the explicit gradient against differences; None
        for 1e-6.

    Raises:
      ValueError: a tolerance is None, and a tensor is not float64.
    """
    if self.dtype != "float64" and None in (autodiff, differences):
      raise ValueError(
        "the default tolerances need tensors of float64, got "
        f"{self.dtype}: use float64, or pass autodiff and differences"
      )
    autodiff = 1e-12 if autodiff is None else autodiff
    differences = 1e-6 if differences is None else differences
    return self.value <= autodiff and all(
      t.explicit_autodiff.relative <= autodiff
      and t.explicit_central.relative <= differences
      and t.explicit_directional.relative <= differences
      for t in self.tensors
    )
