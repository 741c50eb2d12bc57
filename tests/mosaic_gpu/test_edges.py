"""The kernels at the edges: no sequences or units, derivatives they lack."""

import re

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import lstm, unroll
from tests.interpreting import INTERPRETED, interpreted
from tests.mosaic_gpu.layers import (
  B,
  D,
  H,
  T,
  agree,
  draw,
  kernel_results,
  results,
)

pytestmark = [INTERPRETED, pytest.mark.usefixtures("threads")]


def test_a_batch_may_be_empty():
  arguments = draw(lstm, batch=(0,))
  found = kernel_results(lstm, arguments)
  assert agree(found, results("xla", lstm, arguments), 0)
  assert found[1][0]["xs"].shape[1:] == (0, D)


@pytest.mark.parametrize(("size", "hidden"), [(0, H), (D, 0)])
def test_a_layer_without_inputs_or_without_units_is_an_error(size, hidden):
  def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)

  units = 4 * hidden
  params = lstm.LSTMParams(
    zeros(size, units), zeros(hidden, units), zeros(units)
  )
  message = f"takes D and H of at least 1, got w_x {[size, units]}"
  with pytest.raises(ValueError, match=re.escape(message)):
    kernel_results(lstm, (params, None, zeros(T, B, size)))


@pytest.mark.parametrize("second", ["grad of grad", "hessian"])
def test_a_second_derivative_is_an_error(second):
  params, state, xs = draw(lstm)

  def f(xs):
    options = {"implementation": "mosaic_gpu"}
    return unroll(lstm, params, state, xs, **options)[1].sum()

  twice = {
    "grad of grad": jax.grad(lambda xs: jax.grad(f)(xs).sum()),
    "hessian": jax.hessian(f),
  }
  with (
    interpreted(),
    pytest.raises(TypeError, match="cannot be differentiated again"),
  ):
    twice[second](xs)
