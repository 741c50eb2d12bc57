"""A cache for functions of a cell, which tells equal cells apart by type."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import jax

from lstm_jax.cells.cell import Cell

Result = TypeVar("Result")


def cached(f: Callable[[Cell], Result]) -> Callable[[Cell], Result]:
  """Return f with a cache: the same cell gets the same result, computed once.

  NamedTuples with equal fields are equal, whatever their types. So the key is
  the cell and the structure of its tree, which has the types. The function
  returned raises ValueError for a cell that is not hashable.
  """

  @cache
  def call(cell, structure):
    del structure
    return f(cell)

  @wraps(f)
  def checked(cell):
    check_hashable(cell)
    return call(cell, jax.tree.structure(cell))

  return checked


def check_hashable(cell: Any) -> None:
  """Raise ValueError unless the cell is hashable."""
  try:
    hash(cell)
  except TypeError:
    raise ValueError(
      "cell must be hashable, such as a module or a NamedTuple of functions, "
      f"got {type(cell).__name__}"
    ) from None
