"""Cells that a function makes from the functions of a module.

`rnn.with_activation(RELU)` has the equations of `rnn` with another activation.
It is an object with the same functions, and not a module. Calls with equal
arguments return the same object, and so do pickle and copy: configurations that
name such a cell stay equal, and no program is compiled twice. (To pickle a cell
with an activation of your own, define the activation's functions at the top
level of a module, without `jax.jit`. `jnp.tanh` and most functions of `jax.nn`
are results of `jax.jit`: call them in such a function; do not pass them.)

  >>> from lstm_jax.cells import RELU, rnn
  >>> cell = rnn.with_activation(RELU)
  >>> cell
  rnn.with_activation(relu)
  >>> import copy
  >>> copy.deepcopy(cell) is cell
  True
"""

import sys
from collections.abc import Callable
from functools import cache, partial, update_wrapper
from types import ModuleType
from typing import Any

from lstm_jax.cells.caching import one_at_a_time
from lstm_jax.cells.cell import one_step


class MadeCell:
  """A cell made by a function (`rnn.with_activation`); see the `Cell` protocol.

  Attributes:
    maker: the function that made it. It must return the same object for equal
      arguments.
    arguments: the arguments of the maker.
    takes_tokens: as in the `Cell` protocol.
  """

  def __init__(self, maker: Callable[..., Any], arguments: tuple, **bound: Any):
    """Take the cell's functions from `bound`, else from the maker's module."""
    functions: dict[str, Any] = maker.__globals__ | bound
    self.maker, self.arguments = maker, arguments
    self.init = functions["init"]
    self.initial_state = functions["initial_state"]
    self.project = functions["project"]
    self.recur = functions["recur"]
    self.recur_backward = functions["recur_backward"]
    self.parameter_gradients = functions["parameter_gradients"]
    self.takes_tokens = functions["takes_tokens"]
    self.forward, self.backward, self.step = one_step(
      self.initial_state,
      self.project,
      self.recur,
      self.recur_backward,
      self.parameter_gradients,
    )

  @property
  def module(self) -> ModuleType:
    """The maker's module, itself a cell: the one with standard activations."""
    return sys.modules[self.maker.__module__]

  def __reduce__(self) -> tuple:
    return self.maker, self.arguments

  def __repr__(self) -> str:
    module = self.maker.__module__.rpartition(".")[2]
    arguments = ", ".join(map(repr, self.arguments))
    return f"{module}.{self.maker.__name__}({arguments})"

  @property
  def __name__(self) -> str:
    return repr(self)


@one_at_a_time
@cache  # the same cell at every call, so that no program is compiled twice
def made_cell(
  maker: Callable[..., Any], arguments: tuple, *names: str, **keywords: Any
) -> Any:
  """Make the cell that `maker(*arguments)` returns, once for equal arguments.

  Args:
    maker: as in `MadeCell`. In a copy of its module, which `testing.plant`
      makes to plant an error, it is another function, so that the copy has
      cells of its own.
    arguments: the arguments of the maker.
    names: the names of the functions in the maker's module that take the
      keywords.
    keywords: the arguments to bind in these functions.
  """
  functions = {name: maker.__globals__[name] for name in names}
  bound = {
    name: update_wrapper(partial(function, **keywords), function)
    for name, function in functions.items()
  }
  return MadeCell(maker, arguments, **bound)
