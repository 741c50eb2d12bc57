"""Cells that are made with other activations than σ and tanh."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Explicit,
  gru,
  gru_reset_before,
  lstm,
  rnn,
  unroll,
  unroll_stack,
)
from lstm_jax.cells import RELU, SIGMOID, TANH, make_hard_sigmoid
from lstm_jax.cells.activations import Activation
from lstm_jax.cells.made import MadeCell
from lstm_jax.language import ModelConfig, language_model
from lstm_jax.sequence import init_stack
from lstm_jax.testing import gradcheck, plant, terms
from tests.draws import B, D, H, arguments, normal_like, weighed, worst
from tests.gradients import planted_error

HARD = make_hard_sigmoid(0.2)
SMALL = 1e-6  # a step of central differences too small to cross a kink
MODULES = lstm, gru, gru_reset_before
EACH_MODULE = pytest.mark.parametrize(
  "module", MODULES, ids=["lstm", "gru", "gru_reset_before"]
)


def hard(a):
  """Keras 2's hard sigmoid in NumPy, away from its kinks."""
  assert np.abs(np.abs(a) - 2.5).min() > 1e-4
  return np.clip(0.2 * a + 0.5, 0, 1)


def relu(a):
  """ReLU in NumPy, away from its kink."""
  assert np.abs(a).min() > 1e-4
  return np.maximum(a, 0)


# One time step of each cell in NumPy: (params, x W_x + b, *state) -> state.
def hard_lstm(params, ax, h, c):
  i, f, g, o = np.split(ax + h @ params.w_h, 4, axis=-1)
  c = hard(f) * c + hard(i) * relu(g)
  return hard(o) * np.tanh(c), c


def hard_gru(params, ax, h):
  (x_r, x_z, x_n), (u_r, u_z, u_n) = (
    np.split(a, 3, axis=-1) for a in (ax, h @ params.w_h)
  )
  r, z = hard(x_r + u_r), hard(x_z + u_z)
  n = relu(x_n + r * (u_n + params.b_n))
  return ((1 - z) * n + z * h,)


def hard_gru_reset_before(params, ax, h):
  x_r, x_z, x_n = np.split(ax, 3, axis=-1)
  w_r, w_z, w_n = np.split(params.w_h, 3, axis=-1)
  r, z = hard(x_r + h @ w_r), hard(x_z + h @ w_z)
  n = relu(x_n + (r * h) @ w_n)
  return ((1 - z) * n + z * h,)


ORACLES = {
  lstm: hard_lstm,
  gru: hard_gru,
  gru_reset_before: hard_gru_reset_before,
}


@pytest.mark.everyday(1)
@EACH_MODULE
def test_hard_gates_equal_numpy_and_have_the_gradient_of_autodiff(module, key):
  cell = module.with_activations(HARD, RELU)
  # For a cell with ReLU, `arguments` have a standard deviation of ¼. Here it is
  # 1: pre-activations reach both flat sides of a gate, and its slope.
  args = params, state, xs = jax.tree.map(lambda x: 4 * x, arguments(cell, key))
  arrays = type(params)(*map(np.asarray, params))
  expected, hs = tuple(map(np.asarray, state)), []
  for x in np.asarray(xs):
    ax = x @ arrays.w_x + arrays.b
    expected = ORACLES[module](arrays, ax, *expected)
    hs.append(expected[0])
  found, found_hs = unroll(cell, *args)
  assert worst((tuple(found), found_hs), (expected, np.array(hs))) < 1e-12

  def run(adjoint):
    return lambda args: unroll(cell, *args, adjoint=adjoint)

  report = gradcheck(run(Explicit()), run(Autodiff()), args, key, epsilon=SMALL)
  assert report.passes()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("module", "term"),
  [
    pytest.param(
      module, term, id=f"{module.__name__.rpartition('.')[2]}-{term}"
    )
    for module in MODULES
    for term in terms(module)
  ],
)
def test_every_planted_error_is_caught_with_hard_gates(module, term, key):
  cell = module.with_activations(HARD, RELU)
  assert planted_error(cell, plant(cell, term), key) > 1e-4


@pytest.mark.exhaustive
@EACH_MODULE
def test_without_a_planted_error_hard_gates_have_the_gradient_of_autodiff(
  module, key
):
  cell = module.with_activations(HARD, RELU)
  assert planted_error(cell, cell, key) < 1e-12


@EACH_MODULE
def test_standard_activations_give_the_module_itself(module):
  assert module.with_activations() is module
  assert module.with_activations(SIGMOID, candidate=TANH) is module
  assert lstm.with_activations(output=TANH) is lstm
  assert rnn.with_activation(TANH) is rnn


MADE = {
  "rnn.with_activation(relu)": lambda: rnn.with_activation(RELU),
  "gru.with_activations(hard_sigmoid(0.2), tanh)": lambda: gru.with_activations(
    gates=make_hard_sigmoid(0.2)
  ),
  "gru_reset_before.with_activations(sigmoid, relu)": lambda: (
    gru_reset_before.with_activations(candidate=RELU)
  ),
  "lstm.with_activations(sigmoid, tanh, sigmoid)": lambda: (
    lstm.with_activations(output=SIGMOID)
  ),
}


@pytest.mark.parametrize("name", MADE)
def test_pickle_copy_and_equal_arguments_give_the_same_made_cell(name):
  cell = MADE[name]()
  assert isinstance(cell, MadeCell) and repr(cell) == name
  assert MADE[name]() is cell
  for protocol in range(2, 6):
    assert pickle.loads(pickle.dumps(cell, protocol)) is cell
  assert copy.copy(cell) is cell and copy.deepcopy(cell) is cell
  assert cell.takes_tokens
  config = ModelConfig(cell)
  assert copy.deepcopy(config) == config


def test_an_activation_of_a_compiled_function_is_copied_as_itself():
  """`deepcopy` of a function of `jax.jit` returns another function."""
  softsign = Activation(
    "softsign", jax.nn.soft_sign, lambda y: (1 - abs(y)) ** 2
  )
  cell = rnn.with_activation(softsign)
  assert copy.deepcopy(cell) is cell
  assert copy.deepcopy(ModelConfig(cell)) == ModelConfig(cell)


def test_params_of_another_cell_are_refused_by_a_made_cell(key):
  cell = lstm.with_activations(HARD)
  params, _, xs = arguments(gru, key)
  message = "^params must be LSTMParams, got GRUParams"
  with pytest.raises(ValueError, match=message):
    unroll(cell, params, None, xs)
  with pytest.raises(ValueError, match=message):
    cell.step(params, lstm.LSTMState(xs[0], xs[0]), xs[0])


@pytest.mark.exhaustive
def test_a_stack_and_a_language_model_take_made_cells(key):
  cells = lstm.with_activations(HARD), rnn.with_activation(RELU)
  layers = normal_like(
    key, init_stack(cells, key, D, (H, H + 1), dtype=jnp.float64)
  )
  xs = normal_like(key, np.zeros((3, B, D)))
  _, middle = unroll(cells[0], layers[0], None, xs)
  _, expected = unroll(cells[1], layers[1], None, middle)
  assert worst(unroll_stack(cells, layers, None, xs)[1], expected) < 1e-14
  models = [
    language_model(ModelConfig(cell, 3, H, dtype=jnp.float64), 7)
    for cell in (cells[0], lstm)
  ]
  assert models[0].loss is not models[1].loss
  params = models[0].init(key)
  tokens = jnp.array([[1, 2], [3, 4], [6, 0]])
  hard_loss, standard_loss = (
    float(m.loss(params, m.initial_state((2,)), tokens, tokens)[0])
    for m in models
  )
  assert abs(hard_loss - standard_loss) > 1e-6


@pytest.mark.exhaustive
@EACH_MODULE
def test_bfloat16_products_of_hard_gates_have_a_small_error(module, key):
  """The error is above that of float32: the products are rounded.

  tests/sequence/test_unroll.py tests the other cells.
  """
  cell = module.with_activations(HARD)
  # Divided by 8, so that no gate saturates.
  exact = jax.tree.map(
    lambda x: np.asarray(x) / 8, arguments(cell, key, steps=31, hidden=48)
  )
  args = jax.tree.map(np.float32, exact)
  f, reference = (
    jax.jit(jax.grad(weighed(partial(unroll, cell, **options), key), (0, 1, 2)))
    for options in ({"compute_dtype": jnp.bfloat16}, {"adjoint": Autodiff()})
  )
  for primal, a, b in zip(
    *map(jax.tree.leaves, (args, f(*args), reference(*exact))), strict=True
  ):
    assert a.dtype == primal.dtype
    a, b = np.asarray(a), np.asarray(b)
    assert 1e-5 < np.linalg.norm(a - b) / np.linalg.norm(b) < 2e-2


def test_what_is_no_activation_is_an_error():
  message = "^activation must be an Activation, such as RELU, got <"
  with pytest.raises(ValueError, match=message):
    rnn.with_activation(jnp.tanh)
  for module in MODULES:
    names = ("gates", "candidate") + (("output",) if module is lstm else ())
    for name in names:
      message = f"^{name} must be an Activation, such as RELU, got 'relu'$"
      with pytest.raises(ValueError, match=message):
        module.with_activations(**{name: "relu"})
