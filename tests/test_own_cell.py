"""The cell of docs/own-cell.md, in a file of its own, as a user has it."""

import importlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import (
  Autodiff,
  Explicit,
  Step,
  gru,
  init_stack,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.platform import traced_for
from lstm_jax.interop.flax import scanned
from lstm_jax.language import ModelConfig, Regularizers, language_model
from lstm_jax.sequence import Directions, regularize
from lstm_jax.testing import plant, terms
from tests.draws import B, D, H, T, arguments, weighed, worst
from tests.gradients import planted_error
from tests.sequence.test_other_cells import CellOfFunctions
from tests.test_docs import DOCS, code_blocks, run

FILE, *BLOCKS = code_blocks((DOCS / "own-cell.md").read_text("utf-8"))
V = 7  # the size of the vocabulary


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
  directory = tmp_path_factory.mktemp("own")
  (directory / "diagonal_lstm.py").write_text(FILE, encoding="utf-8")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(directory)
    yield importlib.import_module("diagonal_lstm")


def gradient(f, key, args):
  return jax.jit(jax.grad(weighed(f, key), (0, 1, 2)))(*args)


@pytest.mark.exhaustive
def test_the_code_of_the_page_runs(cell):
  names = {}
  for code in BLOCKS:
    run(code, names)
  assert names["loss"] > 0


@pytest.mark.exhaustive
def test_it_has_the_gradient_of_autodiff_and_no_planted_error_passes(cell, key):
  args = arguments(cell, key)
  twin = gradient(partial(unroll, cell, adjoint=Autodiff()), key, args)
  for adjoint in (Explicit(), Explicit("recompute"), Step()):
    found = gradient(partial(unroll, cell, adjoint=adjoint), key, args)
    assert worst(found, twin) < 1e-12
  planted = terms(cell)
  assert {"da_i", "da_f", "da_g", "da_o", "dc_sum", "dw_x", "du"} <= {*planted}
  assert planted_error(cell, cell, key) < 1e-12
  for term in planted:
    assert planted_error(cell, plant(cell, term), key) > 1e-4, term


def test_its_state_can_be_donated(cell, key):
  params, _, xs = arguments(cell, key)
  state = cell.initial_state(params, (B,))
  expected = cell.step(params, state, xs[0])
  found = jax.jit(cell.step, donate_argnums=1)(params, state, xs[0])
  assert worst(found, expected) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", [Explicit(), Explicit(chunk=2), Step()])
def test_weights_in_bfloat16_take_inputs_in_float32(cell, key, adjoint):
  params = cell.init(key, D, H, jnp.bfloat16)
  xs = jax.random.normal(key, (T, B, D), jnp.float32)

  def loss(params, xs):
    return unroll(cell, params, None, xs, adjoint=adjoint)[1].sum()

  with jax.numpy_dtype_promotion("standard"):
    last, hs = unroll(cell, params, None, xs, adjoint=adjoint)
    grads = jax.grad(loss)(params, xs)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    exact = jax.grad(loss)(wide, xs)
  assert {x.dtype for x in (*last, hs, *grads)} == {jnp.dtype(jnp.bfloat16)}
  for found, expected in zip(grads, exact, strict=True):
    error = jnp.linalg.norm(found.astype(jnp.float32) - expected)
    assert error < 2e-2 * jnp.linalg.norm(expected)


def test_it_runs_with_options_in_stacks_and_in_both_directions(cell, key):
  xs = arguments(cell, key)[2]
  cells = cell, gru
  params = init_stack(cells, key, D, H, dtype=jnp.float64)
  reset = jnp.arange(T * B).reshape(T, B) % 4 == 0
  options = {"lengths": jnp.array([T, 0, 2]), "reset": reset}

  def both(adjoint):
    def f(params, xs):
      states, hs = unroll_stack(
        cells, params, None, xs, adjoint=adjoint, **options
      )
      directions = Directions(params[0], params[0])
      last, other = unroll_both(
        cell, directions, None, xs, adjoint=adjoint, **options
      )
      return states, hs, last, other

    return jax.jit(jax.grad(weighed(f, key), (0, 1)))(params, xs)

  assert worst(both(Explicit()), both(Autodiff())) < 1e-12


def test_a_language_model_trains_on_it(cell, key):
  config = ModelConfig(cell, embedding_size=D, hidden_size=H, dtype=jnp.float64)
  noise = Regularizers(zoneout_h=0.1, zoneout_c=0.2, output_dropout=0.3)
  tokens = jax.random.randint(key, (T, B), 0, V)

  def gradient(adjoint):
    model = language_model(config, V, regularizers=noise, adjoint=adjoint)
    params, state = model.init(key), model.initial_state((B,))

    def loss(params):
      return model.training_loss(params, state, tokens, tokens, key)[0]

    return jax.jit(jax.grad(loss))(params)

  assert worst(gradient(Explicit()), gradient(Autodiff())) < 1e-12


def test_a_language_model_may_have_a_zero_state_computed_from_weights(cell):
  def initial_state(params, batch_shape=()):
    zero = jnp.broadcast_to(0 * params.u[:H], (*batch_shape, H))
    return cell.DiagonalLSTMState(zero, zero)

  parts = cell.project, cell.recur, cell.recur_backward
  parts = *parts, cell.parameter_gradients
  steps = one_step(initial_state, *parts)
  other = CellOfFunctions(
    cell.init, initial_state, *parts, *steps, takes_tokens=False
  )
  (state,) = language_model(ModelConfig(other, H, H), V).initial_state((B,))
  (like,) = language_model(ModelConfig(cell, H, H), V).initial_state((B,))
  assert worst(state, like) == 0
  assert state.h is not state.c


def test_scanned_takes_a_cell_whose_c_is_larger_than_h(cell, key):
  class State(NamedTuple):
    c: jax.Array  # [..., 2H]
    h: jax.Array  # [..., H]

  def initial_state(params, batch_shape=()):
    h, c = cell.initial_state(params, batch_shape)
    return State(jnp.concatenate([c, h], -1), h)

  def recur(params, state, ax):
    before = cell.DiagonalLSTMState(state.h, state.c[..., :H])
    (h, c), *saved = cell.recur(params, before, ax)
    return State(jnp.concatenate([c, h], -1), h), *saved

  def recur_backward(params, gates, residuals, d):
    dc, dh_of_c = jnp.split(d.c, 2, -1)
    d_after = cell.DiagonalLSTMState(d.h + dh_of_c, dc)
    before, da = cell.recur_backward(params, gates, residuals, d_after)
    zeros = jnp.zeros_like(before.c)
    return State(jnp.concatenate([before.c, zeros], -1), before.h), da

  parts = cell.project, recur, recur_backward, cell.parameter_gradients
  steps = one_step(initial_state, *parts)
  other = CellOfFunctions(
    cell.init, initial_state, *parts, *steps, takes_tokens=False
  )
  carry = scanned(other).initialize_carry(B, H)
  x = jnp.ones((T, B, D), jnp.float32), jnp.zeros((T, B))
  run = scanned(other)().init_with_output
  (last, ys), _ = jax.eval_shape(run, key, carry, x)
  assert last.c.shape == (B, 2 * H)
  assert ys.shape == (T, B, H)


def test_a_cell_may_leave_out_annotations_and_save_scalars(cell, key):
  """Also for a GPU, where `sequence.joined` joins what a time step saves."""

  def recur(params, state, ax):
    after, gates, residuals = cell.recur(params, state, ax)
    return after, gates, (*residuals, jnp.float64(2.0), after.h.sum())

  def recur_backward(params, gates, residuals, d_state):
    *own, two, total = residuals
    assert two.shape == total.shape == ()
    return cell.recur_backward(params, gates, own, d_state)

  halves = (
    lambda params, x: cell.project(params, x),
    recur,
    recur_backward,
    cell.parameter_gradients,
  )
  steps = one_step(cell.initial_state, *halves)
  other = CellOfFunctions(
    cell.init, cell.initial_state, *halves, *steps, takes_tokens=False
  )
  args = arguments(cell, key)
  expected = gradient(partial(unroll, cell), key, args)
  assert worst(gradient(partial(unroll, other), key, args), expected) < 1e-12
  with traced_for("cuda"):
    found = gradient(partial(unroll, other), key, args)
  assert worst(found, expected) < 1e-12


def test_tokens_drop_connect_and_params_of_another_cell_are_refused(cell, key):
  params, _, xs = arguments(cell, key)
  message = "xs must be floats, since this cell takes no tokens, got int"
  with pytest.raises(ValueError, match=message):
    unroll(cell, params, None, jnp.zeros((T, B), int))
  state = cell.initial_state(params, (D,))
  with (
    jax.numpy_dtype_promotion("standard"),
    pytest.raises(ValueError, match=message.replace("xs", "x")),
  ):
    # D tokens have the shape of one input vector, which W_x could multiply.
    cell.step(params, state, jnp.zeros(D, int))
  message = "drop_connect needs a cell with a matrix w_h, got DiagonalLSTMPara"
  with pytest.raises(ValueError, match=message):
    regularize.drop_connect(key, params, 0.5)
  assert regularize.drop_connect(key, params, 0.0) is params
  message = "params must be DiagonalLSTMParams, got GRUParams"
  with pytest.raises(ValueError, match=message):
    unroll(cell, gru.init(key, D, H), None, xs)
