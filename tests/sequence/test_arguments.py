"""Errors about common mistakes say what was expected and what was given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Directions,
  Explicit,
  init_stack,
  lstm,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.sequence import regularize, state_cotangents
from tests.draws import B, D, H, T

KEY = jax.random.key(0)
XS = jnp.ones((T, B, D), jnp.float32)
# T, B, D are 5, 3, 4 in the messages. The T that they expect of xs is the one
# that xs have: 3, if their axes are exchanged.
ORDER = (
  r"; inputs \[B, T, D\] need time_major=False, and \[T, B, D\] need True$"
)


def test_errors_about_batch_first_arguments_name_time_major():
  params = lstm.init(KEY, D, H)
  batch_first = jnp.swapaxes(XS, 0, 1)
  state = lstm.initial_state(params, (B,))
  message = r"^xs must be inputs \[3, 3, 4\], got \(3, 5, 4\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, state, batch_first)
  lengths = jnp.full(B, T)
  message = r"^lengths must be integers \[5\], got int\d+ \(3,\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, batch_first, lengths=lengths)
  mask = jnp.ones((B, T), bool)
  message = r"^mask must be bool \[5, 3\], got bool \(3, 5\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, XS, mask=mask)
  _, hs = unroll(
    lstm, params, state, batch_first, lengths=lengths, time_major=False
  )
  assert hs.shape == (B, T, H)


def test_an_error_about_a_dtype_does_not_name_time_major():
  params, square = lstm.init(KEY, D, H), XS[:B]  # T = B
  for xs, name, value in (
    (square, "mask", jnp.ones((B, B))),
    (square, "lengths", jnp.ones(B)),
    (XS[:, 0], "mask", jnp.ones(T)),  # no batch
  ):
    message = rf"^{name} must be .*, got float\d+ \([\d, ]+\)$"
    with pytest.raises(ValueError, match=message):
      unroll(lstm, params, None, xs, **{name: value})
  # An error about exchanged axes names it, also with two batch axes.
  two_axes, mask = jnp.ones((T, B, 2, D)), jnp.ones((B, T, 2), bool)
  message = r"^mask must be bool \[5, 3, 2\], got bool \(3, 5, 2\)" + ORDER
  with pytest.raises(ValueError, match=message):
    unroll(lstm, params, None, two_axes, mask=mask)


def test_errors_about_batch_first_arguments_give_the_callers_shapes():
  params, xs = lstm.init(KEY, D, H), jnp.swapaxes(XS, 0, 1)
  pair = Directions(params, params)
  time_first = jnp.ones((T, B), bool)
  message = r" must be bool \[3, 5\], got bool \(5, 3\)" + ORDER
  empty = r"^xs must have at least one step \(T ≥ 1\), got \(3, 0, 4\)$"
  for run in (
    partial(unroll, lstm, params),
    partial(unroll_both, lstm, pair),
    partial(unroll_stack, lstm, [pair]),
  ):
    for name in ("mask", "reset"):
      with pytest.raises(ValueError, match=f"^{name}{message}"):
        run(None, xs, time_major=False, **{name: time_first})
      run(None, xs, time_major=False, **{name: time_first.T})
    with pytest.raises(ValueError, match=empty):
      run(None, xs[:, :0], time_major=False)


# [T, D], the same with T = D, and tokens [T].
@pytest.mark.parametrize("xs", [XS[:, 0], XS[:D, 0], jnp.ones(T, jnp.int32)])
def test_batch_first_needs_a_batch(xs):
  params = lstm.init(KEY, D, H)
  calls = (
    lambda: unroll(lstm, params, None, xs, time_major=False),
    lambda: unroll_stack(lstm, [params], None, xs, time_major=False),
    lambda: unroll_both(
      lstm, Directions(params, params), None, xs, time_major=False
    ),
  )
  for call in calls:
    with pytest.raises(
      ValueError, match=r"time_major=False needs xs with a ba"
    ):
      call()


def test_lists_are_taken_as_arrays():
  params = lstm.init(KEY, D, H)
  _, hs = unroll(lstm, params, None, XS.tolist())
  assert (hs == unroll(lstm, params, None, XS)[1]).all()
  state = lstm.initial_state(params)
  assert lstm.step(params, state, [1.0] * D).h.shape == (H,)
  last = lstm.initial_state(params, (B,))
  given = state_cotangents(lstm, params, None, XS.tolist(), last)
  assert given.h.shape == (T + 1, B, H)


def test_what_cannot_be_read_as_an_array_is_refused():
  class Tensor:
    """As a tensor of PyTorch that needs a gradient."""

    error = RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def __array__(self, *_, **__):
      raise self.error

  params = lstm.init(KEY, D, H)
  with pytest.raises(ValueError, match=r"^xs .*, got Tensor: Can't call numpy"):
    unroll(lstm, params, None, Tensor())
  Tensor.error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    unroll(lstm, params, None, Tensor())


@pytest.mark.parametrize("field", ["h", "c"])
@pytest.mark.parametrize(
  "value", [None, [0.0] * H, "0", jax.ShapeDtypeStruct((B, H), jnp.float32)]
)
def test_a_state_has_an_array_in_each_field(field, value):
  params = lstm.init(KEY, D, H)
  state = lstm.initial_state(params, (B,))
  wrong = state._replace(**{field: value})
  for name, call in (
    ("state", lambda: unroll(lstm, params, wrong, XS)),
    ("state", lambda: lstm.step(params, wrong, XS[0])),
    ("d_last", lambda: state_cotangents(lstm, params, state, XS, wrong)),
  ):
    found = type(value).__name__
    message = rf"^{name}\.{field} must be an array, got {found}"
    with pytest.raises(ValueError, match=message):
      call()


def test_a_step_names_the_type_of_a_state_without_arrays():
  message = r"^state must be of type LSTMState, got tuple(\n|$)"
  with pytest.raises(ValueError, match=message):
    lstm.step(lstm.init(KEY, D, H), (), XS[0])


def test_complex_inputs_are_refused_and_not_made_real():
  params = lstm.init(KEY, D, H)
  with pytest.raises(ValueError, match=r"^xs must be real, got complex128"):
    unroll(lstm, params, None, XS.astype(complex))
  state = lstm.initial_state(params, (B,))
  with pytest.raises(ValueError, match=r"^x must be real, got complex128"):
    lstm.step(params, state, XS[0].astype(complex))


def test_the_weights_of_one_layer_are_refused_as_a_stack():
  params = lstm.init(KEY, H, H)
  for layers in (params, Directions(params, params)):
    kind = type(layers).__name__
    with pytest.raises(
      ValueError,
      match=f"^params must be a list or tuple with one .* got {kind}$",
    ):
      unroll_stack(lstm, layers, None, jnp.ones((T, B, H)))


def test_a_skip_keeps_the_dtype_of_the_weights():
  params = (lstm.init(KEY, D, D, jnp.bfloat16),)
  for skip in (False, True):
    _, hs = unroll_stack(lstm, params, None, XS, skip=skip)
    assert hs.dtype == jnp.bfloat16


def test_a_sum_of_outputs_of_two_sizes_is_an_error():
  sizes = Directions(lstm.init(KEY, D, H), lstm.init(KEY, D, 1))
  with pytest.raises(ValueError, match=f"of one size, got {H} and 1"):
    unroll_both(lstm, sizes, None, XS, merge="sum")


def test_a_mask_without_a_batch_axis_is_an_error_in_both_orders():
  params = lstm.init(KEY, D, H)
  for time_major in (True, False):
    xs = XS if time_major else XS.swapaxes(0, 1)
    mask = jnp.ones(T, bool)
    with pytest.raises(ValueError, match=rf"^mask must be bool.*bool \({T},\)"):
      unroll(lstm, params, None, xs, mask=mask, time_major=time_major)


@pytest.mark.parametrize("name", ["mask", "reset"])
def test_a_mask_or_reset_for_each_layer_is_an_error(name):
  layers = init_stack(lstm, KEY, D, H, num_layers=2)
  flags = {name: (None, jnp.ones((T, B), bool))}
  message = rf"^{name} must be bool \[{T}, {B}\], got tuple: "
  with pytest.raises(ValueError, match=message):
    unroll_stack(lstm, layers, None, XS, **flags)


def test_a_size_may_be_an_integer_of_numpy():
  assert Explicit(chunk=np.int64(3)) == Explicit(chunk=3)
  layers = init_stack(lstm, KEY, D, np.int64(H), num_layers=2)
  assert [layer.w_h.shape for layer in layers] == [(H, 4 * H)] * 2


def test_only_an_exchange_of_axes_names_time_major():
  square = jnp.ones((B, B, D + 3))  # T = B, and another D
  message = r"^xs must be inputs \[3, 3, 4\], got \(3, 3, 7\)$"
  with pytest.raises(ValueError, match=message):
    unroll(lstm, lstm.init(KEY, D, H), None, square)


def test_one_state_is_refused_as_a_pair_and_as_layers():
  params = lstm.init(KEY, D, D)
  rates, state = lstm.LSTMState(0.1, 0.2), lstm.initial_state(params, (B,))
  both = partial(unroll_both, lstm, Directions(params, params))
  stack = partial(unroll_stack, lstm, [params, params])
  pair = r" must be Directions\(forward, backward\), got LSTMState of 2$"
  layers = r" must be a list or tuple with one .* per layer, got LSTMState$"
  for call, message in (
    (lambda: both(None, XS, zoneout=rates), f"^zoneout{pair}"),
    (lambda: both(state, XS), f"^states{pair}"),
    (lambda: stack(None, XS, zoneout=rates), f"^zoneout{layers}"),
    (lambda: stack(state, XS), f"^states{layers}"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  with pytest.raises(TypeError, match="unexpected keyword argument 'reverse'"):
    stack(None, XS, reverse=True)


@pytest.mark.parametrize("name", ["dropout", "locked_dropout"])
def test_dropout_takes_floats(name):
  drop = getattr(regularize, name)
  for bad, got in ((jnp.arange(3), "int64$"), (None, "NoneType: ")):
    with pytest.raises(ValueError, match=rf"^xs? must hold floats, got {got}"):
      drop(KEY, bad, 0.5)
  found, expected = (
    drop(KEY, x, 0.5) for x in ([1.0, 2.0], jnp.array([1.0, 2]))
  )
  assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_factors_are_floats(rate):
  message = "^dtype must be a dtype of floats, .*, got int32$"
  with pytest.raises(ValueError, match=message):
    regularize.factors(KEY, (3,), rate, jnp.int32)


def test_a_traced_reverse_is_an_error():
  """Such as in `jax.jit(unroll, static_argnums=0)`, which traces `reverse`."""
  params = lstm.init(KEY, D, H)

  def run(reverse):
    return unroll(lstm, params, None, XS, reverse=reverse)[1].shape

  traced = jax.errors.TracerBoolConversionError
  with pytest.raises(traced, match=r"traced array with shape bool\[\]"):
    jax.eval_shape(run, True)
  assert run(jnp.array(True)) == (T, B, H)
