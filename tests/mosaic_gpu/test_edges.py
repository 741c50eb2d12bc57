"""The kernels at the edges: no sequences, and derivatives that they lack."""

import jax
import pytest

from lstm_jax import lstm, unroll
from tests.interpreting import NEEDS_KERNELS, interpreted
from tests.mosaic_gpu.layers import D, agree, draw, kernel_results, results

pytestmark = [NEEDS_KERNELS, pytest.mark.usefixtures("threads")]


def test_a_batch_may_be_empty():
  arguments = draw(lstm, batch=(0,))
  found = kernel_results(lstm, arguments)
  assert agree(found, results("xla", lstm, arguments), 0)
  _, (cotangents,) = found
  assert cotangents["xs"].shape[1:] == (0, D)


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
