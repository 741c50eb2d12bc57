"""Cells of different types are different, although they compare as equal.

A NamedTuple with methods may be a cell; two with equal values are equal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, Step, rnn, unroll
from lstm_jax.cells.caching import cached
from lstm_jax.language import ModelConfig, language_model
from tests.draws import B, D, H, T, arguments, worst


def cell_times(factor):
  """Return an RNN, a NamedTuple without fields, with `factor` times x W_x."""

  class Cell(NamedTuple):
    init = staticmethod(rnn.init)
    initial_state = staticmethod(rnn.initial_state)
    recur = staticmethod(rnn.recur)
    recur_backward = staticmethod(rnn.recur_backward)

    @staticmethod
    def project(params, x):
      return factor * rnn.project(params, x)

    @staticmethod
    def parameter_gradients(params, x, h, residuals, da):
      d_params, dx = rnn.parameter_gradients(params, x, h, residuals, da)
      scaled = d_params._replace(w_x=factor * d_params.w_x)
      return scaled, factor * dx

    @staticmethod
    def forward(params, state, x):
      after, *saved = rnn.recur(params, state, Cell.project(params, x))
      return after, saved

    @staticmethod
    def step(params, state, x):
      return Cell.forward(params, state, x)[0]

  return Cell()


CELLS = cell_times(1.0), cell_times(2.0)


@pytest.mark.parametrize(
  "adjoint",
  [Explicit(), Explicit("recompute", chunk=2), Step(), Autodiff()],
  ids=str,
)
@pytest.mark.parametrize("features", [{}, {"mask": jnp.ones((T, B), bool)}])
def test_each_has_its_own_outputs_and_gradient(adjoint, features, key):
  one, two = CELLS
  assert one == two and hash(one) == hash(two)
  params, state, xs = arguments(rnn, key)

  def run(cell, *args):
    return unroll(cell, *args, adjoint=adjoint, **features)[1]

  def gradient(cell, params=params):
    def total(params, xs):
      return run(cell, params, state, xs).sum()

    return jax.grad(total, (0, 1))(params, xs)

  # The second must not run a program that was traced for the first.
  found = [(run(cell, params, state, xs), gradient(cell)) for cell in CELLS]
  for factor, (hs, (d_params, dxs)) in zip((1, 2), found, strict=True):
    scaled = params._replace(w_x=factor * params.w_x)
    d_scaled, expected = gradient(rnn, scaled)
    d_scaled = d_scaled._replace(w_x=factor * d_scaled.w_x)
    assert worst((d_params, dxs), (d_scaled, expected)) < 1e-12
    assert worst(hs, run(rnn, scaled, state, xs)) < 1e-12


def test_a_cell_that_holds_one_of_them_is_told_apart_too():
  class Outer(NamedTuple):
    inner: object

  first, second = map(Outer, CELLS)
  assert first == second

  @cached
  def held(cell):
    return cell.inner

  assert [type(held(cell)) for cell in (first, second)] == [*map(type, CELLS)]


def test_each_has_its_own_language_model(key):
  one, two = (
    language_model(ModelConfig(cell=cell, hidden_size=H), D) for cell in CELLS
  )
  assert one is not two
