"""What the weights of a cell must be."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, gru, lstm, peephole_lstm, rnn, unroll
from lstm_jax.sequence import masked, resettable, state_cotangents
from lstm_jax.testing import plant
from tests.contract import CELLS
from tests.draws import B, D, H, T

KEY = jax.random.key(0)
XS = jnp.ones((T, B, D), jnp.float32)


@pytest.mark.parametrize("cell", [lstm, gru, peephole_lstm])
@pytest.mark.parametrize("other", [lstm, gru, rnn, peephole_lstm])
def test_params_of_another_cell_are_named(cell, other):
  params = cell.init(KEY, D, H)
  state = cell.initial_state(params, (B,))
  weights = other.init(KEY, D, H)
  if cell is other:
    assert unroll(cell, weights, None, XS)[1].shape == (T, B, H)
    return
  expected, found = type(params).__name__, type(weights).__name__
  message = rf"^params must be {expected}, got {found}\b"
  calls = (
    lambda: unroll(cell, weights, None, XS),
    lambda: cell.step(weights, state, XS[0]),
    lambda: state_cotangents(cell, weights, state, XS, state),
  )
  for call in calls:
    with pytest.raises(ValueError, match=message):
      call()


def test_a_planted_cell_takes_the_weights_and_states_of_its_original():
  params = lstm.init(KEY, D, H)
  state = lstm.initial_state(params, (B,))
  _, hs = unroll(lstm, params, state, XS)
  last, planted = unroll(plant(lstm, "dc"), params, state, XS)
  assert (planted == hs).all()
  assert type(last) is lstm.LSTMState


@CELLS
def test_weights_that_do_not_fit_each_other_are_refused(cell):
  """A row, a column or a number would be broadcast."""
  params = cell.init(KEY, D, H)
  leaves, structure = jax.tree.flatten(params)
  for k, leaf in enumerate(leaves):
    others = leaf[:1], leaf[..., :1], leaf[..., :-1], jnp.ones(())
    for other in others:
      if other.shape == leaf.shape:
        continue
      weights = jax.tree.unflatten(
        structure, [*leaves[:k], other, *leaves[k + 1 :]]
      )
      with (
        jax.numpy_rank_promotion("allow"),  # as users have it
        pytest.raises(ValueError, match=r"^(weights do not fit|xs must)"),
      ):
        unroll(cell, weights, None, XS)


def test_a_step_refuses_misfits_too_and_a_sequence_refuses_integers():
  params = lstm.init(KEY, D, H)
  state = lstm.initial_state(params, (B,))
  text = rf"^weights do not fit each other: w_x \[{D}, {4 * H}\], .*, b \[1\]"
  with pytest.raises(ValueError, match=text):
    lstm.step(params._replace(b=params.b[:1]), state, XS[0])
  wrapped, flag = masked(resettable(lstm)), jnp.ones(B, bool)
  for before in (state, None):
    with pytest.raises(ValueError, match=text):
      wrapped.step(params._replace(b=params.b[:1]), before, XS[0], flag, flag)
  with pytest.raises(
    ValueError, match=r"^params\.w_h must be floats, got int32"
  ):
    unroll(lstm, params._replace(w_h=params.w_h.astype(jnp.int32)), None, XS)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    (
      "b",
      None,
      rf"weights do not fit .*\[{H}, {4 * H}\], b None; a step fails",
    ),
    ("w_x", [[0.0]], r"params\.w_x must be an array, got list"),
    ("b", [0.0], r"params\.b must be an array, got list"),
    ("w_h", "4H", r"params\.w_h must be an array, got str"),
    # What `jax.eval_shape` returns in place of an array.
    ("b", jax.ShapeDtypeStruct((4 * H,), jnp.float32), r"params\.b must be an"),
  ],
)
def test_weights_are_arrays(field, value, message):
  right = lstm.init(KEY, D, H)
  params = right._replace(**{field: value})
  state = lstm.initial_state(right, (B,))
  for call in (
    lambda: unroll(lstm, params, None, XS),
    lambda: lstm.step(params, None, XS[0]),
    lambda: lstm.step(params, state, XS[0]),
  ):
    with pytest.raises(ValueError, match=f"^{message}"):
      call()


def test_weights_of_a_cell_without_recur_backward_are_accepted():
  forward_only = lstm_with(recur_backward=None, parameter_gradients=None)
  params = lstm.init(KEY, D, H)
  expected = unroll(lstm, params, None, XS)
  found = unroll(forward_only, params, None, XS, adjoint=Autodiff())
  assert jnp.array_equal(found[1], expected[1])


def lstm_with(**functions):
  names = ("init", "initial_state", "project", "recur", "recur_backward")
  names += ("parameter_gradients", "forward", "backward", "step")
  cell = {name: getattr(lstm, name) for name in names} | functions
  return namedtuple("Cell", cell)(**cell)
