"""The Mogrifier LSTM: its rounds, low-rank factors, weights and errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, mogrifier_lstm, unroll
from lstm_jax.cells import low_rank
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.low_rank import LowRank
from lstm_jax.testing import plant, terms
from tests.contract import EXHAUSTIVE
from tests.draws import B, D, H, T, normal_like, weighed, worst


def arguments(key, rounds, rank):
  def make(key):
    sizes = {"rounds": rounds, "rank": rank}
    params = mogrifier_lstm.init(key, D, H, jnp.float64, **sizes)
    state = mogrifier_lstm.initial_state(params, (B,))
    return params, state, jnp.zeros((T, B, D))

  return normal_like(key, jax.eval_shape(make, key))


def not_empty(tree):
  """Return the arrays that have elements: with one round, R has none."""
  return [leaf for leaf in jax.tree.leaves(tree) if leaf.size]


@pytest.mark.parametrize(
  ("rounds", "rank"),
  [
    pytest.param(1, 2, marks=EXHAUSTIVE),
    (2, 3),
    *(
      pytest.param(rounds, rank, marks=EXHAUSTIVE)
      for rounds in (1, 2, 5, 6)
      for rank in (None, 1)
    ),
  ],
)
def test_rounds_and_ranks_have_the_gradient_of_autodiff(rounds, rank, key):
  args = arguments(key, rounds, rank)
  a, b = (
    jax.jit(
      jax.grad(
        weighed(partial(unroll, mogrifier_lstm, adjoint=adjoint), key),
        (0, 1, 2),
      )
    )(*args)
    for adjoint in (Explicit(), Autodiff())
  )
  assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, args)
  assert worst(not_empty(a), not_empty(b)) < 1e-12


@pytest.mark.exhaustive
def test_low_rank_factors_compute_what_their_product_does(key):
  params, state, xs = arguments(key, rounds=5, rank=2)
  # Of 5 rounds, 3 have a Q and 2 have an R.
  assert params.q.left.shape == (3, H, 2) and params.r.right.shape == (2, 2, H)
  q, r = (jnp.einsum("nik,nkj->nij", *factors) for factors in params[-2:])
  found = unroll(mogrifier_lstm, params, state, xs)
  whole = params._replace(q=q, r=r)
  assert worst(found, unroll(mogrifier_lstm, whole, state, xs)) < 1e-12


def test_the_initial_factors_are_drawn_independently(key):
  left, right = low_rank.init(key, 32, 32, 32, jnp.float64)
  # Two draws of n = 32² numbers have a correlation of about 1 / √n.
  assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / 32


@EXHAUSTIVE
def test_each_initial_matrix_keeps_the_scale_of_its_input():
  for rank in (None, 50):
    params = mogrifier_lstm.init(jax.random.key(0), 200, 100, rank=rank)
    for w, size in ((params.q, 100), (params.r, 200)):
      matrix = w.left @ w.right if isinstance(w, LowRank) else w
      assert np.abs(matrix.std(axis=(1, 2)) * size**0.5 - 1).max() < 0.1


@pytest.mark.everyday(1)
@pytest.mark.parametrize("term", terms(low_rank))
def test_every_error_planted_in_low_rank_is_caught(term, key, monkeypatch):
  # Only the gradient of a whole matrix, without low rank, has the term dw.
  rank = None if term == "dw" else 2
  params, state, xs = arguments(key, rounds=2, rank=rank)

  def gradient(step):
    gradient = jax.jit(jax.grad(weighed(step, key), (0, 1, 2)))
    return gradient(params, state, xs[0])

  expected = gradient(lambda *args: mogrifier_lstm.forward(*args)[0])
  assert worst(gradient(mogrifier_lstm.step), expected) < 1e-12
  monkeypatch.setattr(mogrifier_lstm, "low_rank", plant(low_rank, term))
  assert worst(gradient(mogrifier_lstm.step), expected) > 1e-4


@pytest.mark.parametrize("name", ["rounds", "rank"])
@pytest.mark.parametrize("value", [0, 2.0])
def test_rounds_and_rank_must_be_positive_integers(name, value, key):
  with pytest.raises(
    ValueError, match=f"^{name} must be an integer ≥ 1, got {value}$"
  ):
    mogrifier_lstm.init(key, D, H, **{name: value})


@pytest.mark.parametrize("shape", [(), (B,)])
def test_a_step_of_tokens_is_an_error(shape, key):
  params, state, _ = arguments(key, rounds=2, rank=None)
  _, _, step = one_step(  # also without the check of the cell itself
    mogrifier_lstm.initial_state,
    lambda params, x: x,
    mogrifier_lstm.recur,
    None,
    None,
  )
  message = r"^x must be floats, since .* takes no tokens, got int64(\n|$)"
  for each in (mogrifier_lstm.step, step):
    with pytest.raises(ValueError, match=message):
      each(params, state if shape else None, jnp.zeros(shape, int))


@pytest.mark.parametrize(
  ("weights", "inputs", "expected"),
  [("float64", "float32", "float64"), ("bfloat16", "float64", "float32")],
)
def test_inputs_are_cast_to_the_dtype_of_the_weights_or_to_float32(
  weights, inputs, expected, key
):
  params = mogrifier_lstm.init(key, D, H, weights)
  x = jnp.ones((B, D), inputs)
  assert mogrifier_lstm.project(params, x).dtype == expected
  after = jax.eval_shape(mogrifier_lstm.step, params, None, x)
  assert after.h.dtype == weights and after.c.dtype == expected
