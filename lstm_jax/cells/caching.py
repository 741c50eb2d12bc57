"""A cache of functions of a cell, for which equal cells may be different."""

from collections.abc import Callable
from functools import cache, wraps

import jax

from lstm_jax.cells.cell import Cell


def cached(f: Callable[[Cell], Cell]) -> Callable[[Cell], Cell]:
  """Return f(cell) that returns the same result for the same cell.

  NamedTuples with equal fields are equal, whatever their types; the structure
  of their tree has the types.
  """

  @cache
  def call(cell, structure):
    del structure
    return f(cell)

  return wraps(f)(lambda cell: call(cell, jax.tree.structure(cell)))
