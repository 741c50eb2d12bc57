"""What a cell is: the functions that `unroll` and the models rely on.

A cell is a module, or any object with the same functions. It splits one step
into the part without memory and the part with memory, so that a whole sequence
can do the first in one product, outside the loop. `one_step` puts the two
halves together again:

  forward(params, state, x)    = recur(params, state, project(params, x))
  backward(residuals, d_state) = recur_backward, then parameter_gradients

Some cells are told more at every step than its input: whether it is masked, for
example (`sequence.wrappers`). Such extras follow the other arguments of `step`,
`forward`, `recur` and `recur_backward`, and have no cotangents.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.precision import cast_like, wide
from lstm_jax.cells.reverse_only import reverse_only

Params = Any  # a NamedTuple with at least w_x [D, G·H] and w_h [H, G·H]
State = Any  # a NamedTuple with at least h [..., H], the output
Tape = Any  # a tuple: what else one recurrence keeps for its backward


NO_FORWARD_MODE = (
  "step has its gradient by hand, and no forward mode (jvp, linearize, "
  "jacfwd): take forward(params, state, x)[0] for it"
)


class Cell(Protocol):
  """One step of a recurrent network, forward and backward.

  `lstm`, `gru` and `rnn` are the reference; their docstrings hold the
  equations. Every function is batched over the leading axes of its arrays, and
  `project` and `parameter_gradients` over a time axis as well.
  """

  def __hash__(self) -> int:
    """Let a cell be known at compile time."""

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
  ) -> Callable[..., tuple[State, jax.Array, Tape]]:
    """(params, state, projected input, *extras) -> (state, kept, tape).

    What the backward needs is kept and tape. The first has the shape of the
    projected input, so that it can take its place in memory, as da later takes
    that of kept: the gates, or the derivatives by a.
    """

  @property
  def recur_backward(self) -> Callable[..., tuple]:
    """(params, kept, tape, d_state, *extras) -> (d_state before it, da).

    More may follow da: whatever else the weights' gradients are made of.
    """

  @property
  def parameter_gradients(
    self,
  ) -> Callable[..., tuple[Params, jax.Array | None]]:
    """(params, x, h, tape, da, *more) -> (d_params, d_x), not yet cast."""

  @property
  def forward(self) -> Callable[..., tuple[State, Any]]:
    """(params, state, x, *extras) -> (state, residuals)."""

  @property
  def backward(self) -> Callable[[Any, State], tuple]:
    """(residuals, d_state) -> (d_params, d_state, d_x, None for each extra)."""

  @property
  def step(self) -> Callable[..., State]:
    """(params, state, x, *extras) -> state, with the explicit gradient."""


class Residuals(NamedTuple):
  """What one step keeps for its backward."""

  params: Params
  x: jax.Array  # [..., D] or tokens [...]
  h: jax.Array  # [..., H], before the step
  kept: jax.Array  # [..., G·H]
  tape: Tape
  extras: tuple


def one_step(
  initial_state: Callable,
  project: Callable,
  recur: Callable,
  recur_backward: Callable,
  parameter_gradients: Callable,
) -> tuple[Callable, Callable, Callable]:
  """Return a cell's (forward, backward, step), made of its two halves."""

  def forward(
    params: Params, state: State, x: jax.Array, *extras: Any
  ) -> tuple[State, Residuals]:
    """Return the state after one step, and what its backward needs."""
    check_inputs("x", initial_state, params, state, x)
    after, kept, tape = recur(params, state, project(params, x), *extras)
    return after, Residuals(params, x, state.h, kept, tape, extras)

  def backward(residuals: Residuals, d_state: State) -> tuple:
    """Return the cotangents of forward's inputs: (d_params, d_state, dx)."""
    params, x, h, kept, tape, extras = residuals
    d_state_wide = wide(d_state)
    d_before, *das = recur_backward(params, kept, tape, d_state_wide, *extras)
    d_params, dx = parameter_gradients(params, x, h, tape, *das)
    dx = None if dx is None else dx.astype(x.dtype)
    d_params, d_before = cast_like((d_params, d_before), (params, d_state))
    return d_params, d_before, dx, *(None for _ in extras)

  @jax.custom_vjp
  def explicit(params, state, x, *extras):
    return forward(params, state, x, *extras)[0]

  explicit.defvjp(forward, backward)

  def step(params: Params, state: State, x: jax.Array, *extras: Any) -> State:
    """Return the state after one step; its `h` is the output.

    The gradient is `backward`, not autodiff.

    Args:
      params: the weights.
      state: the state before, with the shapes of `initial_state`.
      x: inputs [..., D], or integer tokens [...] in [0, D).
      extras: what else a wrapped cell is told; nothing for the others.

    Returns:
      The state after, with the shapes and dtypes of the one before.

    Raises:
      ValueError: the state or x does not fit the weights or the other.
      TypeError: forward mode (`jvp`) meets it; differentiate `forward` instead.
    """
    inputs = reverse_only((params, state, x), NO_FORWARD_MODE)
    return explicit(*inputs, *extras)

  return forward, backward, step


def check_inputs(
  name: str,
  initial_state: Callable[..., State],
  params: Params,
  state: State,
  x: jax.Array,
  leading: tuple[int, ...] = (),
) -> None:
  """Raise ValueError unless the state and x fit the weights and each other.

  Args:
    name: what the message calls x.
    initial_state: the cell's.
    params: a cell's parameters.
    state: must have the type and shapes of the initial state, for the leading
      axes B of its h.
    x: must be floats [*leading, *B, D] or integer tokens [*leading, *B].
    leading: the axes of x that the state lacks: (T,), or none.
  """
  batch = state.h.shape[:-1] if hasattr(state, "h") else ()
  initial = jax.eval_shape(lambda: initial_state(params, batch))
  if type(state) is not type(initial):
    wanted, found = type(initial).__name__, type(state).__name__
    raise ValueError(f"state must be a {wanted}, got {found}")
  for field, leaf, like in zip(state._fields, state, initial, strict=True):
    if leaf.shape != like.shape:
      shape = _axes(like.shape)
      raise ValueError(f"state.{field} must be {shape}, got {leaf.shape}")
  size = params.w_x.shape[0]
  if is_token(x):
    kind, expected = "integer tokens", (*leading, *batch)
  else:
    kind, expected = "inputs", (*leading, *batch, size)
  if x.shape != expected:
    raise ValueError(f"{name} must be {kind} {_axes(expected)}, got {x.shape}")


def _axes(shape: tuple[int, ...]) -> str:
  return f"[{', '.join(map(str, shape))}]"
