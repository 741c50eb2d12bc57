"""What a cell is: the functions that `unroll` and the models rely on.

A cell is a module, or any object with the same functions. It splits one step
into the part without memory and the part with memory, so that a whole sequence
can do the first in one product, outside the loop:

  forward(params, state, x)   =  recur(params, state, project(params, x))
  backward(residuals, d_state) =  recur_backward, then parameter_gradients
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from lstm_jax.cells.affine import is_token

Params = Any  # a NamedTuple with at least w_x [D, G·H] and w_h [H, G·H]
State = Any  # a NamedTuple with at least h [..., H], the output
Tape = Any  # a NamedTuple: what one recurrence keeps for its backward


class Cell(Protocol):
  """One step of a recurrent network, forward and backward.

  `lstm`, `gru` and `rnn` are the reference; their docstrings hold the
  equations. Every function is batched over the leading axes of its arrays, and
  `project` and `parameter_gradients` over a time axis as well.
  """

  @property
  def init(self) -> Callable[..., Params]:
    """(key, input_size, hidden_size, dtype) -> params."""

  @property
  def initial_state(self) -> Callable[..., State]:
    """(params, batch_shape) -> the zero state."""

  @property
  def project(self) -> Callable[[Params, jax.Array], jax.Array]:
    """(params, x) -> the input's share of the pre-activations."""

  @property
  def recur(
    self,
  ) -> Callable[[Params, State, jax.Array], tuple[State, Tape]]:
    """(params, state, projected input) -> (state, tape)."""

  @property
  def recur_backward(
    self,
  ) -> Callable[[Params, Tape, State], tuple[State, jax.Array]]:
    """(params, tape, d_state) -> (d_state before it, d_projected)."""

  @property
  def parameter_gradients(
    self,
  ) -> Callable[..., tuple[Params, jax.Array | None]]:
    """(params, x, h, tape, d_projected) -> (d_params, d_x)."""

  @property
  def forward(self) -> Callable[[Params, State, jax.Array], tuple[State, Any]]:
    """(params, state, x) -> (state, residuals)."""

  @property
  def backward(self) -> Callable[[Any, State], tuple[Params, State, Any]]:
    """(residuals, d_state) -> (d_params, d_state, d_x)."""

  @property
  def step(self) -> Callable[[Params, State, jax.Array], State]:
    """(params, state, x) -> state, with the explicit gradient."""


def check_inputs(
  name: str, params: Params, batch_shape: tuple[int, ...], x: jax.Array
) -> None:
  """Raise ValueError unless x is `batch_shape` vectors, or tokens, for params.

  Args:
    name: what the message calls x.
    params: a cell's parameters; w_x [D, G·H] says what D is.
    batch_shape: the leading axes that x must have.
    x: floats [*batch_shape, D] or integer tokens [*batch_shape].
  """
  size = params.w_x.shape[0]
  expected = batch_shape if is_token(x) else (*batch_shape, size)
  if x.shape != expected:
    axes = ", ".join(str(n) for n in expected)
    kind = "integer tokens" if is_token(x) else "inputs"
    raise ValueError(f"{name} must be {kind} [{axes}], got {x.shape}")
