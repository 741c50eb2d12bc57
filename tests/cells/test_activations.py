"""Activations and their derivatives."""

import math
import pickle
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, min_lstm, rnn, slstm, unroll
from lstm_jax.cells import RELU, SIGMOID, TANH, make_hard_sigmoid
from lstm_jax.cells.activations import Activation, relu, softplus
from tests.contract import EXHAUSTIVE
from tests.draws import arguments, largest, weighed, worst
from tests.patterns import exact

HARD = make_hard_sigmoid(0.2)


@pytest.mark.parametrize(
  ("activation", "expected"),
  [
    (TANH, math.tanh),
    (SIGMOID, lambda a: 1 / (1 + math.exp(-a))),
    (RELU, lambda a: max(a, 0.0)),
    (HARD, lambda a: min(max(0.2 * a + 0.5, 0.0), 1.0)),
    (make_hard_sigmoid(1 / 6), lambda a: min(max(a + 3, 0.0), 6.0) / 6),
  ],
  ids=["tanh", "sigmoid", "relu", "hard_sigmoid(0.2)", "hard_sigmoid(1/6)"],
)
def test_values_and_the_derivative_from_the_output_are_right(
  activation, expected
):
  a = jnp.array([-9.0, -3.1, -2.4, -0.1, 0.2, 1.7, 2.4, 2.6, 8.0])
  y = activation.apply(a)
  assert worst(y, np.array([expected(float(v)) for v in a])) < 1e-15
  derivative = jax.vmap(jax.grad(activation.apply))(a)
  assert worst(activation.derivative(y), derivative) < 1e-15


@pytest.mark.parametrize(
  ("activation", "kinks"),
  # A slope of ¼ has its kinks at −2 and 2 exactly.
  [(HARD, [-2.5, 2.5]), (make_hard_sigmoid(0.25), [-2.0, 2.0]), (RELU, [0.0])],
  ids=repr,
)
def test_the_derivative_at_a_kink_is_that_of_the_flat_side(activation, kinks):
  for kink in map(jnp.float64, kinks):
    assert activation.derivative(activation.apply(kink)) == 0
    assert jax.grad(activation.apply)(kink) == 0  # autodiff agrees


def test_softplus_and_its_first_three_derivatives_are_right():
  a = jnp.array([-800.0, -40.0, -1.5, -1e-3, 0.0, 1e-3, 1.5, 40.0, 800.0])
  s, t = jax.nn.sigmoid(a), jax.nn.sigmoid(-a)
  expected = [np.logaddexp(a, 0), s, s * t, s * t * (1 - 2 * s)]
  f = softplus
  for values in expected:
    np.testing.assert_allclose(jax.vmap(f)(a), values, 1e-14, atol=1e-15)
    f = jax.grad(f)


@pytest.mark.parametrize(
  ("function", "expected"),
  [(softplus, jax.nn.softplus), (relu, jax.nn.relu)],
)
def test_softplus_and_relu_equal_those_of_jax_at_infinity_and_nan(
  function, expected
):
  for a in (jnp.inf, -jnp.inf, jnp.nan):
    np.testing.assert_equal(float(function(a)), float(expected(a)))
    if not np.isnan(a):
      assert jax.grad(function)(a) == jax.grad(expected)(a)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  "cell",
  [slstm, min_lstm, rnn.with_activation(RELU)],
  ids=["slstm", "min_lstm", "relu_rnn"],
)
@pytest.mark.parametrize(
  ("adjoint", "order"),
  [
    pytest.param(Autodiff(), 2, id="Autodiff-2"),
    pytest.param(Explicit(), 3, id="Explicit-3", marks=EXHAUSTIVE),
  ],
)
def test_higher_derivatives_at_zero_pre_activations_equal_those_of_a_loop(
  cell, adjoint, order, key
):
  """The loop is in Python. Every second pre-activation is 0.

  At 0, in a scan that is differentiated twice, JAX 0.10 takes wrong derivatives
  of `jax.nn.softplus` and `jax.nn.relu`.
  """
  params, state, xs = arguments(cell, key, steps=3, batch=(2,))
  params = jax.tree.map(lambda w: w.at[..., ::2].set(0), params)

  def loop(params, state, xs):
    hs = []
    for x in xs:
      state, _ = cell.forward(params, state, x)
      hs.append(state.h)
    return state, jnp.stack(hs)

  def derivative(f):
    for each in jax.random.split(key, order):
      f = jax.grad(weighed(f, each), (0, 1, 2))
    return jax.jit(f)(params, state, xs)

  expected = derivative(loop)
  size = largest(expected)
  found = derivative(partial(unroll, cell, adjoint=adjoint))
  assert size > 0.1
  assert worst(found, expected) < 1e-12 * max(size, 1)


@pytest.mark.parametrize(
  "slope",
  [0, -0.2, math.inf, math.nan, "0.2", True, Fraction(1, 10**400), 10**400],
  ids=str,
)
def test_a_slope_that_is_no_finite_positive_number_is_refused(slope):
  with pytest.raises(
    ValueError,
    match=rf"must be a number in \(0, inf\), got {exact(repr(slope))}",
  ):
    make_hard_sigmoid(slope)


def test_parameters_in_a_list_are_refused():
  """JAX and the cache of made cells hash an activation."""
  scaled = Activation("scaled", lambda a, s: a * s, lambda y, s: s, [0.2])
  with pytest.raises(ValueError, match=r"parameters must be a tuple, got list"):
    rnn.with_activation(scaled)


def test_parameters_that_are_arrays_are_refused():
  array = (jnp.float32(0.2),)
  scaled = Activation("scaled", lambda a, s: a * s, lambda y, s: s, array)
  with pytest.raises(ValueError, match=r"\.parameters must be hashable, such"):
    rnn.with_activation(scaled)


@pytest.mark.parametrize("slope", [np.float64(0.25), Fraction(1, 4)], ids=repr)
def test_any_kind_of_real_number_as_a_slope_keeps_the_dtype_of_a(slope):
  hard = make_hard_sigmoid(slope)
  y = hard.apply(jnp.ones(2, jnp.float32))
  for found, expected in ((y, 0.75), (hard.derivative(y), 0.25)):
    assert found.dtype == jnp.float32 and (found == expected).all()


def test_activations_of_one_slope_are_equal_and_of_two_slopes_are_not():
  for same in (make_hard_sigmoid(0.2), pickle.loads(pickle.dumps(HARD))):
    assert same == HARD and hash(same) == hash(HARD)
  assert make_hard_sigmoid(1 / 6) != HARD
  assert repr(HARD) == "hard_sigmoid(0.2)"
