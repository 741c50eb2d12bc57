"""An error in the weights or in a cell is named before a step runs."""

from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, init_stack, layernorm_lstm, lstm, unroll
from lstm_jax.cells.weight_checks import check_params, check_weights, parts_of
from tests.draws import B, D, H, T
from tests.test_docs import DOCS, code_blocks

if TYPE_CHECKING:
  from nowhere import Params

FILE, *_ = code_blocks((DOCS / "own-cell.md").read_text("utf-8"))
XS = jnp.ones((T, B, D), jnp.float32)
PARAMS = f"w_x [{D}, {4 * H}], u [{4 * H}], b [{4 * H}]"
WRONG = f"weights do not fit each other, or the cell is wrong: {PARAMS}; "


def own_cell(old, new):
  """Return the cell of docs/own-cell.md, with `new` in place of `old`."""
  assert FILE.count(old) == 1
  cell = ModuleType("own_cell")
  exec(FILE.replace(old, new), cell.__dict__)
  return cell


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (
      "gates = jnp.concatenate([i, f, g, o], axis=-1)",
      "gates = jnp.concatenate([i, f], axis=-1)",
      f"{WRONG}recur must return gates of project's shape, [{4 * H}], "
      f"got [{2 * H}]",
    ),
    (
      "DiagonalLSTMState(o * jnp.tanh(c), c)",
      "DiagonalLSTMState(o * jnp.tanh(c), gates)",
      f"{WRONG}recur must return a state of initial_state's shapes, "
      f"h [{H}], c [{H}], got h [{H}], c [{4 * H}]",
    ),
    (
      "gates, (state.c, c)",
      "(gates, state.c, c)",
      f"{WRONG}a step fails: not enough values to unpack (expected 3, got 2)",
    ),
    (
      "dx = da @ params.w_x.T",
      "dx = da @ params.w_x",
      f"{WRONG}its backward fails: dot_general requires contracting dimensions "
      f"to have the same shape, got ({4 * H},) and ({D},).",
    ),
    (
      "return DiagonalLSTMState(dh, dc), da",
      "return DiagonalLSTMState(da, dc), da",
      f"{WRONG}recur_backward must return cotangents of the state's shapes, "
      f"h [{H}], c [{H}], got h [{4 * H}], c [{H}]",
    ),
    (
      "dx = da @ params.w_x.T",
      "dx = da",
      f"{WRONG}parameter_gradients must return dx of x's shape, [{D}], "
      f"got [{4 * H}]",
    ),
    (
      "shape = *batch_shape, len(params.b) // 4",
      "shape = (len(params.b) // 4,)",
      "initial_state must put batch_shape before the axes "
      f"h [{H}], c [{H}], got h [{H}], c [{H}] for (2,)",
    ),
    (
      "c=jnp.zeros(shape, params.b.dtype)",
      "c=None if batch_shape else jnp.zeros(shape, params.b.dtype)",
      "initial_state must put batch_shape before the axes "
      f"h [{H}], c [{H}], got h [2, {H}], c None for (2,)",
    ),
    (
      "return DiagonalLSTMState(\n",
      "return (dict if batch_shape else DiagonalLSTMState)(\n",
      "initial_state must put batch_shape before the axes "
      f"h [{H}], c [{H}], got ['c'] [2, {H}], ['h'] [2, {H}] for (2,)",
    ),
    (
      '"...d,...k->dk"',
      '"...d,...k->kd"',
      f"weights do not fit each other: {PARAMS}; their gradients have "
      f"w_x [{4 * H}, {D}], u [{4 * H}], b [{4 * H}]",
    ),
  ],
)
def test_an_error_of_a_cell_is_named(old, new, message):
  cell = own_cell(old, new)
  params = cell.init(jax.random.key(0), D, H)
  state = cell.initial_state(params, (B,))
  for run in (
    lambda: unroll(cell, params, None, XS),
    lambda: cell.step(params, state, XS[0]),
  ):
    with pytest.raises(ValueError) as error:
      run()
    assert str(error.value) == message


def test_the_error_that_a_cell_raises_is_the_cause_of_ours():
  cell = own_cell("jnp.concatenate([i, f, g, o], axis=-1)", "len(3)")
  params = cell.init(jax.random.key(0), D, H)
  with pytest.raises(ValueError, match=r"'int' has no len") as error:
    unroll(cell, params, None, XS)
  assert type(error.value.__cause__) is TypeError


@pytest.mark.parametrize(
  ("zeros", "kind"),
  [
    ("dict", "dict"),
    ("(lambda h, c: (h, c))", "tuple"),
    ("(lambda h, c: h)", "an array"),
    ("(lambda h, c: DiagonalLSTMParams(h, c, c))", "DiagonalLSTMParams"),
  ],
)
def test_a_zero_state_that_is_no_namedtuple_with_h_is_named(zeros, kind):
  cell = own_cell("return DiagonalLSTMState(\n", f"return {zeros}(\n")
  without_backward = ModuleType("forward_only")
  vars(without_backward).update(vars(cell), recur_backward=None)
  params = cell.init(jax.random.key(0), D, H)
  message = (
    f"initial_state must return a NamedTuple with an array h, got {kind}"
  )
  for run in (
    lambda: unroll(cell, params, None, XS),
    lambda: cell.step(params, None, XS[0]),
    lambda: init_stack(cell, jax.random.key(0), D, H, num_layers=1),
    lambda: unroll(without_backward, params, None, XS, adjoint=Autodiff()),
  ):
    with pytest.raises(ValueError, match=f"{message}$"):
      run()


def test_a_backward_need_not_be_implemented_yet():
  cell = own_cell("  dx = da @ params.w_x.T", "  raise NotImplementedError")
  params = cell.init(jax.random.key(0), D, H)
  assert unroll(cell, params, None, XS, adjoint=Autodiff())[1].any()
  wrong = params._replace(b=params.b[:-4])
  with pytest.raises(ValueError, match=r"^weights do not fit each other"):
    unroll(cell, wrong, None, XS, adjoint=Autodiff())


def test_a_backward_may_require_exactly_one_batch_axis():
  cell = own_cell('"...d,...k->dk"', '"bd,bk->dk"')
  params = cell.init(jax.random.key(0), D, H)
  assert unroll(cell, params, None, XS, adjoint=Autodiff())[1].any()


def test_a_w_x_of_one_column_is_refused():
  """Layer norm maps one number to 0; the gains would broadcast that 0."""
  params = layernorm_lstm.init(jax.random.key(0), D, H)
  with pytest.raises(ValueError, match=rf"^weights do not .* w_x \[{D}, 1\]"):
    unroll(layernorm_lstm, params._replace(w_x=params.w_x[:, :1]), None, XS)


def test_the_annotation_of_params_may_be_a_string():
  def project(params: "tuple", x):
    return x

  check_params(project, ())
  with pytest.raises(ValueError, match=r"^params must be tuple, got dict$"):
    check_params(project, {})


def test_a_type_that_is_any_or_cannot_be_evaluated_is_not_checked():
  def project(params: "Params", x):
    return x

  def project_any(params: Any, x):
    return x

  class HasWeights(Protocol):
    w_x: jax.Array

  def project_protocol(params: HasWeights, x):
    return x

  def project_text(params: tuple, x: "inputs of a batch"):  # noqa: F722
    return x

  check_params(project, {})
  check_params(project_any, {})
  check_params(project_protocol, {})
  # Only the annotation of x cannot be evaluated: that of params still counts.
  with pytest.raises(ValueError, match=r"^params must be tuple, got dict$"):
    check_params(project_text, {})


def test_weights_and_states_of_an_earlier_definition_are_named_as_such():
  """As in a notebook, where a cell is defined or reloaded a second time."""
  # The same source, executed twice: nothing is replaced.
  before, after = (own_cell("def row(", "def row(") for _ in range(2))
  arrays = jnp.zeros((D, 4 * H)), jnp.zeros(4 * H), jnp.zeros(4 * H)
  params = after.DiagonalLSTMParams(*arrays)
  end = "of another definition, as from before or after a reload$"
  old = before.DiagonalLSTMParams(*arrays)
  name = "DiagonalLSTMParams"
  message = f"^params must be {name}, got {name} {end}"
  with pytest.raises(ValueError, match=message):
    unroll(after, old, None, XS)
  state = before.initial_state(old, (B,))
  name = "DiagonalLSTMState"
  message = f"^state must be of type {name}, got {name} {end}"
  with pytest.raises(ValueError, match=message):
    unroll(after, params, state, XS)


def test_a_tensor_of_another_library_is_refused(key):
  class Tensor:
    dtype, shape = "torch.float32", (20,)

  params = lstm.init(key, D, H)._replace(b=Tensor())
  with pytest.raises(ValueError, match=r"^params\.b must be an array of NumPy"):
    check_weights(parts_of(lstm), params)


def test_a_missing_array_is_named(key):
  """As after a partition of the weights, before they are combined again."""
  params = lstm.init(key, D, H)._replace(w_h=None)
  found = rf"w_x \[{D}, {4 * H}\], w_h None, b \[{4 * H}\]; a step fails"
  with pytest.raises(ValueError, match=found):
    check_weights(parts_of(lstm), params)
