"""Cells that a function makes from the functions of a module.

`rnn.with_activation(RELU)` has the equations of `rnn` with another activation.
It is no module, but an object with the same functions. Equal arguments return
the same object, and so do pickle and copy: configurations that name such a cell
stay equal, and no program is compiled twice. (For pickle, the functions of an
activation of your own must be at the top level of a module.)

  >>> from lstm_jax.cells import RELU, rnn
  >>> cell = rnn.with_activation(RELU)
  >>> cell
  rnn.with_activation(relu)
  >>> import copy
  >>> copy.deepcopy(cell) is cell
  True
"""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from lstm_jax.cells.cell import one_step


class MadeCell:
  """A cell that a function of a module returned; see the `Cell` protocol.

  Attributes:
    maker: that function, which must return the same object for equal arguments.
    arguments: its arguments.
    takes_tokens: as in the `Cell` protocol.
  """

  def __init__(
    self,
    maker: Callable[..., Any],
    arguments: tuple,
    *,
    init: Callable[..., Any],
    initial_state: Callable[..., Any],
    project: Callable[..., Any],
    recur: Callable[..., Any],
    recur_backward: Callable[..., Any],
    parameter_gradients: Callable[..., Any],
    takes_tokens: bool,
  ):
    self.maker, self.arguments = maker, arguments
    self.init, self.initial_state = init, initial_state
    self.project, self.recur = project, recur
    self.recur_backward = recur_backward
    self.parameter_gradients = parameter_gradients
    self.takes_tokens = takes_tokens
    self.forward, self.backward, self.step = one_step(
      initial_state, project, recur, recur_backward, parameter_gradients
    )

  def __reduce__(self) -> tuple:
    return self.maker, self.arguments

  def __repr__(self) -> str:
    module = self.maker.__module__.rpartition(".")[2]
    arguments = ", ".join(map(repr, self.arguments))
    return f"{module}.{self.maker.__name__}({arguments})"

  @property
  def __name__(self) -> str:
    return repr(self)


def bind(function: Callable[..., Any], **keywords: Any) -> Callable[..., Any]:
  """Return a function with some keywords bound, under its own name."""
  return update_wrapper(partial(function, **keywords), function)
