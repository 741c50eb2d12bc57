"""The interface of a cell, and how `one_step` builds a step from its parts.

A cell is a module, or any object with the same functions. It splits one time
step into two halves: `project` depends on the input alone, and `recur` on the
state. A whole sequence can then do the first half in one matrix product, before
the scan over time. `one_step` combines the halves into a step:

  forward(params, state, x)  = recur(params, state, project(params, x)), whose
                               gates and residuals are saved with params, x, h
  backward(saved, d_state)   = recur_backward, then parameter_gradients

A wrapped cell (`sequence.wrappers`) takes further arguments at every step, such
as a mask. These extras follow the other arguments of `step`, `forward`, `recur`
and `recur_backward`, and have no cotangents.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.checks import check_inputs, check_leaves, check_like
from lstm_jax.cells.mapped import over_batch
from lstm_jax.cells.mesh import auto_sharded, batch_sharding, vary_alike
from lstm_jax.cells.precision import as_array, as_arrays, cast_like, upcast
from lstm_jax.cells.reverse_only import reverse_only
from lstm_jax.cells.serialization import serializable
from lstm_jax.cells.weight_checks import check_params, check_weights

Params = Any  # a NamedTuple with at least w_x [D, G·H], for G gates of H units
State = Any  # a NamedTuple with at least the output h, [..., H] (projected: P)
Residuals = Any  # a tree of arrays [..., any size], such as ()
ParamsT = TypeVar("ParamsT")  # params type of one cell
StateT = TypeVar("StateT")  # state type of one cell

NO_FORWARD_MODE = (
  "the hand-derived gradient of step has no forward mode (jvp, linearize, "
  "jacfwd): differentiate forward(params, state, x)[0] instead"
)


class Cell(Protocol[ParamsT, StateT]):
  """One time step of a recurrent network, forward and backward.

  `lstm`, `gru` and `rnn` are examples; their docstrings hold the equations. All
  functions are batched over the leading axes of their arrays. A cell must be
  hashable, to be a static argument of a compiled function. With `Explicit`,
  `unroll` calls some of them for many time steps at once, with a time axis
  before the batch axes: `project` and `parameter_gradients`; `recur` if
  `residuals="recompute"`; and `recur` and `recur_backward` of a linear
  recurrence.

  If `project` uses x in x W_x alone, and takes integer tokens for one-hot rows,
  the cell has the attribute `takes_tokens = True`. If the next state is
  λ ⊙ state + u in each of its arrays, where neither λ nor u depends on the
  state and |λ| ≤ 1, the cell may have the attribute `linear_recurrence = True`;
  with `Explicit`, `unroll` then computes all time steps at once
  (`sequence.linear`).
  """

  @property
  def init(self) -> Callable[..., ParamsT]:
    """(key, input_size, hidden_size, dtype) -> params."""

  @property
  def initial_state(self) -> Callable[..., StateT]:
    """(params, batch_shape) -> the zero state."""

  @property
  def project(self) -> Callable[[ParamsT, jax.Array], jax.Array]:
    """(params, x) -> the input's part of the pre-activations, [..., G·H].

    `mogrifier_lstm` returns x itself, [..., D]. In that cell, x takes the place
    of the gates too, and dx that of da.
    """

  @property
  def recur(
    self,
  ) -> Callable[..., tuple[StateT, jax.Array, Residuals]]:
    """(params, state, projected input, *extras) -> (state, gates, residuals).

    Gates and residuals are what the backward needs. The gates have the shape of
    the projected input, [..., G·H]: the loop of `Explicit` stores them in the
    memory of the projected input, and later da in theirs. Instead of gates, a
    cell may return any array of that shape, such as local gradients: the
    derivatives of its state with respect to the pre-activations a.
    """

  @property
  def recur_backward(self) -> Callable[..., tuple[Any, ...]]:
    """(params, gates, residuals, d_state, *extras) -> (d_state, da).

    The argument d_state is the cotangent of the state after the step. The
    results are the cotangent of the state before the step, and da, the
    cotangent of the pre-activations. Extra cotangents may follow da, if
    `parameter_gradients` needs them.
    """

  @property
  def parameter_gradients(
    self,
  ) -> Callable[..., tuple[ParamsT, jax.Array | None]]:
    """(params, x, h, residuals, da, *extra cotangents) -> (d_params, dx).

    Both have the accumulation dtype (`cells.precision`). Of tokens, dx is None.
    """

  @property
  def forward(self) -> Callable[..., tuple[StateT, Any]]:
    """(params, state, x, *extras) -> (state, saved), saved for `backward`.

    As in `step`, a state of None is the zero state.
    """

  @property
  def backward(self) -> Callable[[Any, StateT], tuple[Any, ...]]:
    """(saved, d_state) -> (d_params, d_state, dx, None for each extra)."""

  @property
  def step(self) -> Callable[..., StateT]:
    """(params, state, x, *extras) -> state, with the hand-derived gradient."""


class CellModule(ModuleType):
  """The type of the package's cells: a module that can be pickled and copied.

  A copy is the module itself, so that configurations that name a cell can be
  pickled and copied, and stay equal.
  """

  def __reduce__(self) -> tuple:
    return importlib.import_module, (self.__name__,)


@serializable
class StepResiduals(NamedTuple):
  """What the forward of one step saves for its backward."""

  params: Params
  x: jax.Array  # [..., D] or tokens [...]
  h: jax.Array  # [..., H], before the step
  gates: jax.Array  # [..., G·H], or local gradients
  residuals: Residuals  # those that `recur` returns
  extras: tuple


def one_step(
  initial_state: Callable[..., StateT],
  project: Callable[[ParamsT, jax.Array], jax.Array],
  recur: Callable[..., tuple[StateT, jax.Array, Any]],
  recur_backward: Callable[..., tuple[Any, ...]] | None,
  parameter_gradients: Callable[..., tuple[ParamsT, jax.Array | None]] | None,
  *,
  innermost: tuple[tuple[Callable[..., Any] | None, ...], int] | None = None,
) -> tuple[
  Callable[..., tuple[StateT, StepResiduals]],
  Callable[[StepResiduals, StateT], tuple[Any, ...]],
  Callable[..., StateT],
]:
  """Return a cell's (forward, backward, step), built from its parts.

  A cell whose last two parts are None has no backward: JAX differentiates its
  `forward`, and `unroll` takes it with `adjoint=Autodiff()`.

  A wrapped cell passes as `innermost` the parts of the cell inside, and how
  many extras its wrappers add. `check_weights` calls those parts, without
  extras. So the weights are not checked if the cell inside takes extras itself.
  """
  parts = initial_state, project, recur, recur_backward, parameter_gradients
  checked, num_extras = innermost or (parts, 0)

  def prepared(params, state, x, extras):
    """Check params, state and x; return them as JAX arrays, with a state."""
    x = as_array("x must be inputs [..., D] or tokens [...]", x)
    check_params(project, params)  # of the type that `project` declares
    if len(extras) == num_extras:
      check_weights(checked, params)
    check_leaves(params=params, state=state, extras=extras[:num_extras])
    params = as_arrays(params)
    if state is None:
      batch_shape = x.shape if is_token(x) else x.shape[:-1]
      state = initial_state(params, batch_shape)
    check_inputs("x", initial_state, params, state, x)
    return params, as_arrays(state), x

  def forward(
    params: ParamsT, state: StateT | None, x: jax.Array, *extras: Any
  ) -> tuple[StateT, StepResiduals]:
    """Return the state after one step, and what its backward needs."""
    return advance(*prepared(params, state, x, extras), *extras)

  def advance(params, state, x, *extras):  # `forward` without its checks
    ax = project(params, x)
    if is_token(x) and (not ax.ndim or ax.shape[:-1] != x.shape):  # no lookup
      raise ValueError(
        f"x must be floats, since this cell takes no tokens, got {x.dtype}"
      )
    after, gates, residuals = recur(params, state, ax, *extras)
    return after, StepResiduals(params, x, state.h, gates, residuals, extras)

  def backward(saved: StepResiduals, d_state: StateT) -> tuple:
    """Return the cotangents (d_params, d_state, dx), and None per extra.

    Args:
      saved: what `forward` returned beside the state.
      d_state: the cotangent of the state after the step, of its shapes.

    Raises:
      ValueError: the cell has no backward, or d_state does not fit.
    """
    check_leaves(d_state=d_state)
    d_state, batch = as_arrays(d_state), saved.h.shape[:-1]
    state = jax.eval_shape(lambda: initial_state(saved.params, batch))
    check_like("d_state", d_state, state)
    return pull_back(saved, d_state)

  def pull_back(saved, d_state):  # `backward` without its checks of d_state
    params, x, h, gates, residuals, extras = saved
    if recur_backward is None or parameter_gradients is None:
      raise ValueError(
        "this cell has no backward: differentiate forward(params, state, x)[0]"
      )
    d_before, *das = recur_backward(
      params, gates, residuals, upcast(d_state), *extras
    )
    d_params, dx = parameter_gradients(params, x, h, residuals, *das)
    dx = None if dx is None else dx.astype(x.dtype)
    d_params, d_before = cast_like((d_params, d_before), (params, d_state))
    return d_params, d_before, dx, *(None for _ in extras)

  @jax.custom_vjp
  def explicit(params, state, x, *extras):
    return advance(params, state, x, *extras)[0]

  explicit.defvjp(advance, pull_back)

  def run(params, state, x, extras):  # (state, no outputs) for `over_batch`
    sharding = batch_sharding((params, extras), state, x)
    return auto_sharded(explicit, sharding)(params, state, x, *extras), ()

  def step(
    params: ParamsT, state: StateT | None, x: jax.Array, *extras: Any
  ) -> StateT:
    """Return the state after one step; the gradient is that of `backward`.

    Args:
      params: the weights.
      state: the state before, with the shapes of `initial_state`; None for the
        zero state.
      x: inputs [..., D], or integer tokens [...] in [0, D).
      extras: further arguments of a wrapped cell, such as a mask.

    Returns:
      The state after, as the one before in shapes and dtypes; h is the output.

    Raises:
      ValueError: params are of another cell or do not fit each other, the state
        and x do not fit the weights or each other, or x holds tokens and the
        cell takes none.
      TypeError: `step` is differentiated in forward mode (`jax.jvp`).
    """
    params, state, x = prepared(params, state, x, extras)
    # In `shard_map`, all arrays must vary over the same axes of the mesh.
    params, state, x, extras = vary_alike((params, state, x, extras))
    inputs = *reverse_only((params, state, x), NO_FORWARD_MODE), extras
    if extras:  # they may lack batch axes, which `over_batch` needs
      return run(*inputs)[0]
    return over_batch(run, 0, *inputs)[0]  # 0 axes before the batch

  # Pickle finds a function by the names of its module and of the function.
  for function in (forward, backward, step):
    function.__module__ = recur.__module__
    function.__qualname__ = function.__name__
  return forward, backward, step
