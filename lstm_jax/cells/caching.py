"""Caches of functions: a result is computed once for equal arguments.

`cached` tells equal cells apart by type. `one_at_a_time` is for functions that
return the same object for equal arguments: `functools.cache` alone returns two,
if two threads call it at once.
"""

from collections.abc import Callable
from functools import cache, wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import jax

CellT = TypeVar("CellT")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def cached(f: Callable[[CellT], Result]) -> Callable[[CellT], Result]:
  """Return f with a cache: the same cell gets the same result, computed once.

  NamedTuples with equal fields are equal, whatever their types. So the key is
  the cell and the structure of its tree, which has the types. The function
  returned raises ValueError for a cell that is not hashable.
  """

  @one_at_a_time
  @cache
  def call(cell, structure):
    del structure
    return f(cell)

  @wraps(f)
  def checked(cell):
    check_hashable(cell)
    return call(cell, jax.tree.structure(cell))

  return checked


def one_at_a_time(
  f: Callable[Arguments, Result],
) -> Callable[Arguments, Result]:
  """Return f, which threads call one after the other; it may call itself."""
  lock = RLock()

  @wraps(f)
  def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    with lock:
      return f(*args, **kwargs)

  return call


def check_hashable(cell: Any) -> None:
  """Raise ValueError unless the cell is hashable."""
  try:
    hash(cell)
  except TypeError:
    raise ValueError(
      "cell must be hashable, such as a module or a NamedTuple of functions, "
      f"got {type(cell).__name__}"
    ) from None
