"""What `unroll` takes as inputs and states, and what it refuses."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Directions,
  Explicit,
  Step,
  lstm,
  unroll,
  unroll_both,
  unroll_stack,
)
from tests.contract import CELLS, REPRESENTATIVE_CELLS, TOKEN_CELLS
from tests.draws import B, D, H, T, arguments, worst
from tests.gradients import value_and_gradient

# T, B, D are 5, 3, 4 in the messages below.


@TOKEN_CELLS
def test_tokens_are_one_hot_rows(cell, key):
  params, state, _ = arguments(cell, key)
  tokens = jax.random.randint(key, (T, B), 0, D)
  rows = jax.nn.one_hot(tokens, D, dtype=jnp.float64)
  a = value_and_gradient(cell, (params, state, tokens))
  value, (d_params, d_state, _) = value_and_gradient(
    cell, (params, state, rows)
  )
  assert worst(a, (value, (d_params, d_state))) < 1e-12


def test_tokens_are_looked_up_without_a_product(key):
  """A product with one-hot rows would have an axis of the vocabulary size."""
  vocabulary, tokens = 99, jnp.zeros((T, B), jnp.int32)
  params = jax.eval_shape(lambda k: lstm.init(k, vocabulary, H), key)

  def products(xs):
    def loss(params):
      return unroll(lstm, params, None, xs)[1].sum()

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    assert lines  # those with w_h
    return [line for line in lines if f"{vocabulary}x" in line]

  assert not products(tokens)
  assert products(jax.nn.one_hot(tokens, vocabulary))


def test_tokens_outside_of_the_rows_read_the_nearest_or_count_back(key):
  params, _, _ = arguments(lstm, key)
  for token, row in (
    (D, D - 1),
    (D + 7, D - 1),
    (-1, D - 1),
    (-D, 0),
    (-D - 1, 0),
  ):
    found, expected = (
      unroll(lstm, params, None, jnp.full((T, B), x)) for x in (token, row)
    )
    assert worst(found, expected) == 0


def test_without_a_state_integer_vectors_are_tokens_of_two_batch_axes(key):
  params, _, _ = arguments(lstm, key)
  pixels = jax.random.randint(key, (T, B, D), 0, D).astype(jnp.uint8)
  assert unroll(lstm, params, None, pixels)[1].shape == (T, B, D, H)
  message = (
    r"^xs must be integer tokens \[5, 3\], got \(5, 3, 4\); "
    r"inputs must be floats, not uint8$"
  )
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, lstm.initial_state(params, (B,)), pixels)


@CELLS
def test_an_empty_sequence_is_an_error(cell, key):
  params, state, xs = arguments(cell, key)
  for empty in (xs[:0], jnp.array(1)):
    message = f"xs must have at least one step (T ≥ 1), got {empty.shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
      unroll(cell, params, state, empty)


@CELLS
def test_error_messages_name_a_state_that_does_not_fit(cell, key):
  params, state, xs = arguments(cell, key)
  for field, leaf in state._asdict().items():
    for cut in (leaf[:, :1], leaf[:1]):
      named, expected, got = field, leaf.shape, cut.shape
      if field == "h" and len(cut) == 1:  # the batch is that of h
        if len(state) == 1:
          continue  # this is an error of xs
        named, other = state._fields[1], state[1]
        expected, got = (1, other.shape[1]), other.shape
      wrong = state._replace(**{field: cut})
      message = re.escape(f"state.{named} must be {[*expected]}, got {got}")
      with pytest.raises(ValueError, match=rf"^{message}(\n|$)"):
        unroll(cell, params, wrong, xs)
      with pytest.raises(ValueError, match=rf"^{message}(\n|$)"):
        cell.step(params, wrong, xs[0])
  name = type(state).__name__
  for wrong in (tuple(state), {"h": state.h}, state.h):
    message = f"^state must be of type {name}, got {type(wrong).__name__}$"
    with pytest.raises(ValueError, match=message):
      unroll(cell, params, wrong, xs)


def test_error_messages_name_inputs_that_do_not_fit(key):
  params, state, xs = arguments(lstm, key)
  message = r"^xs must be inputs \[5, 3, 4\], got \(5, 3, 8\)$"
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, state, jnp.concatenate([xs, xs], axis=2))
  message = r"^xs must be integer tokens \[5, 3\], got \(5, 4\)$"
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, state, jnp.zeros((T, B + 1), int))


@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("batch", [(B,), (), (2, B)])
def test_a_state_of_none_is_the_zero_state(cell, batch, key):
  params, _, xs = arguments(cell, key, batch=batch)
  zero = cell.initial_state(params, batch)
  tokens = jax.random.randint(key, (T, *batch), 0, D)
  takes_tokens = getattr(cell, "takes_tokens", False)
  for inputs in (xs, tokens) if takes_tokens else (xs,):
    found = unroll(cell, params, None, inputs)
    assert worst(found, unroll(cell, params, zero, inputs)) == 0
  if len(batch) == 1:
    found = unroll(cell, params, None, xs.swapaxes(0, 1), time_major=False)
    assert worst(found[0], unroll(cell, params, zero, xs)[0]) == 0


def test_error_messages_name_inputs_that_do_not_fit_without_a_state(key):
  params, _, xs = arguments(lstm, key)
  message = r"^xs must be inputs \[5, 3, 4\], got \(5, 3, 2\)$"
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, xs[..., :2])
  message = r"^xs must have at least one step \(T ≥ 1\), got \(0, 3, 4\)$"
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, xs[:0])


def test_inputs_may_be_numpy_arrays(key):
  params, state, xs = arguments(lstm, key)
  assert (
    worst(
      unroll(lstm, params, state, np.asarray(xs)),
      unroll(lstm, params, state, xs),
    )
    == 0
  )


@pytest.mark.parametrize("time_major", [True, False])
@pytest.mark.parametrize("wrong", [None, "x", [[1.0], [1.0, 2.0]]])
def test_what_is_no_array_is_refused_by_name(wrong, time_major, key):
  params, _, _ = arguments(lstm, key)
  message = r"^xs must be inputs \[T, \.\.\., D\] or tokens \[T, \.\.\.\], got "
  for run, weights, options in (
    (unroll, params, {}),
    (
      unroll_both,
      Directions(params, params),
      {"reset": jnp.ones((T, B), bool)},
    ),
    (unroll_stack, (params,), {"skip": True}),
  ):
    with pytest.raises(ValueError, match=f"{message}{type(wrong).__name__}: "):
      run(lstm, weights, None, wrong, time_major=time_major, **options)


def test_lengths_that_are_no_array_are_refused_by_name(key):
  params, _, xs = arguments(lstm, key)
  with pytest.raises(
    ValueError, match=r"^lengths must be .* \[3\], got list: "
  ):
    unroll(lstm, params, None, xs, lengths=[T, None, T])


def test_a_leaked_tracer_raises_jaxs_own_error(key):
  params, _, xs = arguments(lstm, key)
  left = []
  jax.eval_shape(left.append, xs)
  with pytest.raises(jax.errors.UnexpectedTracerError):
    unroll(lstm, params, None, left)


@pytest.mark.parametrize("time_major", [True, False])
def test_inputs_may_be_lists(time_major, key):
  params, _, xs = arguments(lstm, key)
  tokens = jax.random.randint(key, (T, B), 0, D)
  mask = jnp.arange(T * B).reshape(T, B) % 5 != 3
  if not time_major:
    xs, tokens, mask = (x.swapaxes(0, 1) for x in (xs, tokens, mask))
  for inputs in (xs, tokens):
    one = partial(unroll, lstm, params, None, time_major=time_major)
    stack = partial(unroll_stack, lstm, (params,), None, time_major=time_major)
    for found, expected in (
      (
        one(inputs.tolist(), mask=mask.tolist()),
        one(inputs, mask=mask),
      ),
      (stack(inputs.tolist(), skip=True), stack(inputs, skip=True)),
    ):
      assert worst(found, expected) == 0


@pytest.mark.parametrize("run", [unroll, unroll_both, unroll_stack])
@pytest.mark.parametrize("adjoint", [Explicit(), Step(), Autodiff()], ids=str)
def test_a_compute_dtype_of_integers_is_refused(run, adjoint, key):
  params, _, xs = arguments(lstm, key)
  if run is unroll_both:
    params = Directions(params, params)
  params = (params,) if run is unroll_stack else params
  message = "^compute_dtype must be a dtype of floats, .*, got int8$"
  with pytest.raises(ValueError, match=message):
    run(lstm, params, None, xs, adjoint=adjoint, compute_dtype=jnp.int8)


def test_float64_weights_of_numpy_need_no_x64(key, recwarn):
  params, _, xs = jax.tree.map(np.asarray, arguments(lstm, key))
  with jax.enable_x64(False):
    _, hs = unroll(lstm, params, None, xs)
    after = lstm.step(params, None, xs[0])
  assert not recwarn.list
  assert hs.dtype == jnp.float32
  assert jnp.allclose(after.h, hs[0], atol=1e-6)
