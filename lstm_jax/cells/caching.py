"""A cache for functions of a cell, which tells equal cells apart by type."""

from collections.abc import Callable
from functools import cache, wraps

import jax

from lstm_jax.cells.cell import Cell


def cached(f: Callable[[Cell], Cell]) -> Callable[[Cell], Cell]:
  """Return f with a cache: the same cell gets the same result, computed once.

  NamedTuples with equal fields are equal, whatever their types. So the key is
  the cell and the structure of its tree, which has the types.
  """

  @cache
  def call(cell, structure):
    del structure
    return f(cell)

  return wraps(f)(lambda cell: call(cell, jax.tree.structure(cell)))
