"""Errors say in one line what is not a cell, and what is wrong with a cell."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import linen

from lstm_jax import Autodiff, Explicit, Step, lstm, unroll, unroll_stack
from lstm_jax.cells.cell import one_step
from lstm_jax.sequence import state_cotangents, wrappers
from tests.draws import B, D, H, T, arguments, normal_like, worst
from tests.sequence.test_other_cells import CellOfFunctions

FIELDS = CellOfFunctions._fields[:6]  # from `init` to `parameter_gradients`
XS = jnp.ones((T, B, D), jnp.float32)
WEIGHTS = f"w_x [{D}, {4 * H}], w_h [{H}, {4 * H}], b [{4 * H}]"
WRONG = f"weights do not fit each other, or the cell is wrong: {WEIGHTS}; "


def lstm_with(**changes):
  """Return the LSTM, as a cell of one's own, with some functions changed."""
  functions = {name: getattr(lstm, name) for name in FIELDS} | changes
  steps = one_step(*(functions[name] for name in FIELDS[1:]))
  return CellOfFunctions(*functions.values(), *steps)


def weights(dtype=jnp.float32):
  return lstm.init(jax.random.key(0), D, H, dtype)


def assert_refused(message, *calls):
  """Assert that each call raises ValueError, with this as its first line."""
  for call in calls:
    with pytest.raises(ValueError) as error:
      call()
    assert str(error.value).split("\n")[0] == message


LACKS = "cell must be lstm, gru or another with the functions of `Cell`, got "


@pytest.mark.parametrize(
  ("cell", "message"),
  [
    (
      linen.LSTMCell(H),
      f"{LACKS}LSTMCell, which has no initial_state, project",
    ),
    (
      lstm.step,
      f"{LACKS}step, which has no initial_state, project",
    ),
    (
      SimpleNamespace(**lstm_with()._asdict()),
      "cell must be hashable, such as a module or a NamedTuple of functions, "
      "got SimpleNamespace",
    ),
    (
      wrappers.masked(lstm),
      "cell must not be wrapped, got one of sequence.wrappers: call its `step` "
      "in a loop, or pass mask, reset, zoneout or state_dropout to `unroll`",
    ),
  ],
)
def test_what_is_no_cell_of_a_sequence_is_refused(cell, message):
  zeros = lstm.initial_state(weights(), (B,))
  assert_refused(
    message,
    lambda: unroll(cell, weights(), None, XS),
    lambda: state_cotangents(cell, weights(), None, XS, zeros),
  )


def recur_to_an_array(params, state, ax):
  after, gates, residuals = lstm.recur(params, state, ax)
  return after.h, gates, residuals


def recur_back_to_an_array(params, gates, residuals, d_state):
  d_before, da = lstm.recur_backward(params, gates, residuals, d_state)
  return d_before.h, da


def gradients_in_a_tuple(*args):
  d_params, dx = lstm.parameter_gradients(*args)
  return tuple(d_params), dx


STATE = f"must return a state of type LSTMState, h [{H}], c [{H}], got an array"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"recur": recur_to_an_array}, f"recur {STATE}, [{H}]"),
    (
      {"recur_backward": recur_back_to_an_array},
      f"recur_backward {STATE}, [{H}]",
    ),
    (
      {"parameter_gradients": gradients_in_a_tuple},
      f"parameter_gradients must return gradients of type LSTMParams, {WEIGHTS}"
      f", got tuple, [0] [{D}, {4 * H}], [1] [{H}, {4 * H}], [2] [{4 * H}]",
    ),
  ],
)
def test_a_function_that_returns_another_type_is_named(changes, message):
  cell = lstm_with(**changes)
  assert_refused(
    WRONG + message,
    lambda: unroll(cell, weights(), None, XS),
    lambda: cell.step(weights(), None, XS[0]),
  )


NO_BACKWARD = lstm_with(recur_backward=None, parameter_gradients=None)


def test_without_a_backward_a_sequence_needs_autodiff():
  lacks = "the cell CellOfFunctions has no "
  names = "recur_backward, parameter_gradients"
  mask = jnp.ones((T, B), bool)
  zeros = lstm.initial_state(weights(), (B,))
  assert_refused(
    f"{lacks}{names}: pass adjoint=Autodiff()",
    lambda: unroll(NO_BACKWARD, weights(), None, XS),
    lambda: unroll(NO_BACKWARD, weights(), None, XS, adjoint=Explicit(chunk=2)),
    lambda: unroll(NO_BACKWARD, weights(), None, XS, mask=mask),
  )
  assert_refused(  # `state_cotangents` has no `adjoint`
    f"{lacks}{names}",
    lambda: state_cotangents(NO_BACKWARD, weights(), None, XS, zeros),
  )
  no_recur = lstm_with()._replace(recur=None)
  assert_refused(
    f"{lacks}recur: pass adjoint=Autodiff()",
    lambda: unroll(no_recur, weights(), None, XS),
  )


def test_without_a_backward_a_step_has_no_gradient():
  flag = jnp.ones(B, bool)
  rates = lstm.LSTMState(*jnp.full((2, 1, 1), 0.1))
  for cell, *extra in (
    (NO_BACKWARD,),
    (wrappers.masked(NO_BACKWARD), flag),
    (wrappers.resettable(NO_BACKWARD), flag),
    (wrappers.zoneout(NO_BACKWARD), rates),
    (wrappers.state_dropout(NO_BACKWARD), jnp.ones((1, H))),
  ):
    gradient = jax.grad(
      lambda p, cell=cell, extra=extra: cell.step(
        p, None, XS[0], *extra
      ).h.sum()
    )
    assert_refused(
      "this cell has no backward: differentiate forward(params, state, x)[0]",
      lambda gradient=gradient: gradient(weights()),
    )


def test_a_step_with_a_gradient_of_its_own_needs_no_parts_of_a_backward(key):
  cell = lstm_with()._replace(recur_backward=None, parameter_gradients=None)
  args = arguments(lstm, key)
  found, expected = (
    jax.grad(lambda args, c=c: unroll(c, *args, adjoint=Step())[1].sum())(args)
    for c in (cell, lstm)
  )
  assert worst(found, expected) == 0


def test_a_cell_without_names_of_a_backward_has_every_feature(key):
  class Forward:
    """A cell without the names recur_backward and parameter_gradients."""

    forward = staticmethod(NO_BACKWARD.forward)
    backward = staticmethod(NO_BACKWARD.backward)
    step = staticmethod(NO_BACKWARD.step)

  for name in ("init", "initial_state", "project", "recur"):
    setattr(Forward, name, staticmethod(getattr(lstm, name)))
  params, state, xs = arguments(lstm, key)
  options = {
    "mask": jnp.arange(T * B).reshape(T, B) % 5 != 3,
    "reset": jnp.arange(T * B).reshape(T, B) % 4 == 0,
    "zoneout": lstm.LSTMState(0.1, 0.2),
    "state_dropout": jnp.full(H, 0.5),
    "adjoint": Autodiff(),
  }
  found, expected = (
    jax.grad(lambda p, c=c: unroll(c, p, state, xs, **options)[1].sum())(params)
    for c in (Forward, lstm)
  )
  assert all(map(jnp.array_equal, found, expected))


def test_weights_without_w_x_are_refused():
  cell = lstm_with(project=lambda params, x: x @ params["w"])
  message = "params must be a NamedTuple with the input weights w_x [D, ...]"
  params = {"w": jnp.ones((D, H))}
  assert_refused(
    f"{message}, got dict",
    lambda: unroll(cell, params, None, XS, adjoint=Autodiff()),
    lambda: cell.step(params, None, XS[0]),
  )


def test_a_sequence_needs_only_what_its_adjoint_calls(key):
  def not_called(*args):
    raise NotImplementedError

  args = arguments(lstm, key)
  by_forward = lstm_with()._replace(step=None, recur=not_called)
  by_step = lstm_with()._replace(forward=None, recur=not_called)
  for cell, adjoint in ((by_forward, Autodiff()), (by_step, Step())):
    cell = cell._replace(recur_backward=None, parameter_gradients=None)
    found = unroll(cell, *args, adjoint=adjoint)
    assert worst(found, unroll(lstm, *args, adjoint=adjoint)) == 0
  parts_alone = lstm_with()._replace(forward=None, step=None)
  found, expected = (
    (*unroll(c, *args), state_cotangents(c, *args, normal_like(key, args[1])))
    for c in (parts_alone, lstm)
  )
  assert worst(found, expected) == 0


def test_a_sequence_names_the_function_that_it_lacks():
  mask = jnp.ones((T, B), bool)
  without = lstm_with()._replace(forward=None, step=None, recur=None)
  lacks = "the cell CellOfFunctions has no "
  for name, adjoint in (("forward", Autodiff()), ("step", Step())):
    run = partial(unroll, without, weights(), None, XS, adjoint=adjoint)
    assert_refused(lacks + name, run)
    assert_refused(f"{lacks}recur", lambda run=run: run(mask=mask))
  without_state = SimpleNamespace(project=lstm.project, recur=lstm.recur)
  message = f"{LACKS}SimpleNamespace, which has no initial_state"
  assert_refused(
    message, lambda: unroll_stack(without_state, [weights()], None, XS)
  )


@pytest.mark.parametrize("missing", ["recur_backward", "parameter_gradients"])
def test_a_step_with_a_mask_says_that_the_cell_has_no_backward(missing):
  without = lstm_with(**{missing: None})
  mask = jnp.ones((T, B), bool)

  def loss(params):
    run = partial(unroll, without, mask=mask, adjoint=Step())
    return run(params, None, XS)[1].sum()

  assert jnp.isfinite(loss(weights()))
  message = "this cell has no backward: differentiate forward"
  with pytest.raises(ValueError, match=message):
    jax.grad(loss)(weights())


def project_in_the_dtype_of_x(params, x):
  return lstm.project(params, x).astype(x.dtype)


def recur_in_the_dtype_of_ax(params, state, ax):
  """Stand for the `recur` of a cell that does not cast its state back."""
  after, *saved = lstm.recur(params, state, ax.astype(jnp.float32))
  return after._replace(h=after.h.astype(ax.dtype)), *saved


@pytest.mark.parametrize(
  ("adjoint", "functions"),
  [
    (Explicit(), {}),
    (Step(), {}),
    (Autodiff(), {"recur_backward": None, "parameter_gradients": None}),
  ],
  ids=str,
)
def test_a_step_that_changes_the_dtypes_of_the_state_is_refused(
  adjoint, functions
):
  cell = lstm_with(
    project=project_in_the_dtype_of_x,
    recur=recur_in_the_dtype_of_ax,
    **functions,
  )
  narrow, xs = weights(jnp.bfloat16), XS.astype(jnp.bfloat16)
  run = partial(unroll, cell, narrow, adjoint=adjoint)
  assert run(None, xs)[1].dtype == jnp.bfloat16
  assert run(lstm.initial_state(weights(), (B,)), XS)[1].dtype == jnp.float32
  assert_refused(
    "a step of CellOfFunctions must keep the shapes and dtypes of the state "
    "(`cast_like` keeps dtypes)",
    lambda: run(None, XS),
  )
