"""Cells with a linear recurrence: all time steps at once.

All of it runs on the CPU: the parallel scan is traced as for a GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lstm_jax import Autodiff, Explicit, gru, min_gru, min_lstm, unroll
from lstm_jax.cells.platform import traced_for
from lstm_jax.sequence import wrappers
from lstm_jax.sequence.linear import is_linear, linear_scan
from tests.contract import TABLE
from tests.draws import B, D, H, T, arguments, largest, weighed, worst
from tests.gradients import value_and_gradient
from tests.sequence.options import FEATURES

LINEAR = [name for name, row in TABLE.items() if is_linear(row.cell)]
EVERYDAY = "min_gru"
CELLS = pytest.mark.parametrize(
  "cell",
  [
    pytest.param(
      TABLE[name].cell,
      id=name,
      marks=[] if name == EVERYDAY else pytest.mark.exhaustive,
    )
    for name in LINEAR
  ],
)


def traced_value_and_gradient(cell, args, key, **options):
  """Return what `value_and_gradient` does, traced anew for another device.

  The key must be key(0), from which that function draws its cotangents.
  """
  f = weighed(partial(unroll, cell, **options), key)
  return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*args)


def test_three_cells_are_linear_and_one_remains_so_when_wrapped():
  assert LINEAR == ["min_gru", "min_lstm", "lru"]
  for name in ("masked", "resettable", "zoneout", "state_dropout"):
    wrap = getattr(wrappers, name)
    assert is_linear(wrap(min_gru)), name
    assert not is_linear(wrap(gru)), name


@pytest.mark.everyday(4)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_linear_scan_equals_a_loop(device, reverse, steps):
  draw = np.random.default_rng(0)
  decay = draw.choice([0, 0.5, 0.99, 1], (steps, B, H))
  increment, first = draw.normal(size=(steps, B, H)), draw.normal(size=(B, H))
  states, state = np.zeros((steps, B, H)), first
  for t in range(steps)[:: -1 if reverse else 1]:
    state = states[t] = decay[t] * state + increment[t]
  with traced_for(device):
    scan = jax.jit(partial(linear_scan, reverse=reverse))
    found = scan(*map(jnp.asarray, (decay, increment, first)))
  assert worst(found, states) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_hides_a_product_that_overflows(device, reverse):
  """λ above 1 on both sides of a reset, as state dropout can make it."""
  decay = np.full((15, B, H), 1e160)  # two steps overflow
  decay[[3, 11]] = 0
  ones = np.ones((15, B, H))
  expected, state = np.zeros((15, B, H)), ones[0]
  with np.errstate(over="ignore", invalid="ignore"):
    for t in range(15)[:: -1 if reverse else 1]:
      kept = np.where(decay[t] == 0, 0, decay[t] * state)
      state = expected[t] = kept + ones[t]
  with traced_for(device):
    scan = jax.jit(partial(linear_scan, reverse=reverse))
    found = scan(*map(jnp.asarray, (decay, ones, ones[0])))
  found = np.asarray(found)
  assert np.isinf(expected).any() and not np.isnan(expected).any()
  finite = np.isfinite(expected)
  assert np.array_equal(found[~finite], expected[~finite])
  assert np.allclose(found[finite], expected[finite], rtol=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_reset_hides_cotangents_that_are_not_finite(device, key):
  params, state, xs = arguments(min_gru, key)
  reset = jnp.zeros((T, B), bool).at[2].set(True)

  def outputs(xs):
    return unroll(min_gru, params, state, xs, reset=reset)[1]

  with traced_for(device):
    hs, pullback = jax.vjp(outputs, xs)
    (expected,), (found,) = (
      pullback(jnp.ones_like(hs).at[2:].set(value)) for value in (0, jnp.inf)
    )
  assert expected[:2].any() and worst(found[:2], expected[:2]) == 0


@CELLS
@pytest.mark.parametrize("feature", ["plain", "all"])
def test_a_parallel_scan_has_the_gradient_of_autodiff(cell, feature, key):
  """As it is traced for a GPU; other tests trace the loop of a CPU."""
  args = arguments(cell, key)
  options = FEATURES[feature](cell) if feature != "plain" else {}
  expected = value_and_gradient(cell, args, adjoint=Autodiff(), **options)
  with traced_for("cuda"):
    found = traced_value_and_gradient(cell, args, key, **options)
    outputs = unroll(cell, *args, **options)
  assert worst(found, expected) < 1e-12
  assert worst(outputs, unroll(cell, *args, **options)) < 1e-12


@CELLS
def test_the_loop_holds_only_the_linear_recurrence(cell, key):
  """It is λ s + u, with 0 for an s that is not finite where λ is 0.

  A parallel scan has no loop at all.
  """
  args = arguments(cell, key)

  def bodies():
    f = jax.grad(weighed(partial(unroll, cell), key), (0, 1, 2))
    return [
      {e.primitive.name for e in _equations(equation.params["jaxpr"].jaxpr)}
      for equation in _equations(jax.make_jaxpr(f)(*args).jaxpr)
      if equation.primitive.name == "scan"
    ]

  forward, backward = bodies()
  allowed = {"mul", "add", "eq", "jit", "select_n", "broadcast_in_dim"}
  allowed |= {"convert_element_type", "is_finite", "not", "and"}
  for body in (forward, backward):
    assert {"mul", "add"} < body <= allowed
  with traced_for("cuda"):
    assert bodies() == []


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _equations(inner)


@pytest.mark.exhaustive
@pytest.mark.parametrize("chunk", [None, 64])
def test_a_long_sequence_has_the_gradient_of_autodiff(chunk, key):
  """A minimal LSTM with memories of 1 to 5e8 time steps."""
  params, state, xs = arguments(min_lstm, key, steps=1000)
  b_f = jnp.linspace(-20, 20, H)  # as b_i = −b_f: memory 1 + exp(b_f) steps
  b = params.b.reshape(3, H).at[0].set(b_f).at[1].set(-b_f)
  # Inputs so small hardly change the gates.
  args = params._replace(b=b.reshape(-1)), state, xs / 30
  expected = value_and_gradient(min_lstm, args, adjoint=Autodiff())
  size = largest(expected)
  for device in ("cpu", "cuda"):
    with traced_for(device):
      found = traced_value_and_gradient(
        min_lstm, args, key, adjoint=Explicit(chunk=chunk)
      )
    assert worst(found, expected) < 1e-12 * size


def test_a_reset_and_a_mask_hide_nan(key):
  """Masked inputs and the state before a reset reach no output."""
  params, state, xs = arguments(min_gru, key)
  mask, reset = (np.zeros((T, B), bool) for _ in range(2))
  mask[[0, 2, 3, 4]] = reset[0] = True
  bad_xs = xs.at[1].set(jnp.nan)
  bad_state = jax.tree.map(lambda s: s.at[:].set(jnp.nan), state)
  expected = unroll(min_gru, params, None, xs, mask=mask, reset=reset)
  for device in ("cpu", "cuda"):
    with traced_for(device):
      found = unroll(min_gru, params, bad_state, bad_xs, mask=mask, reset=reset)
    assert worst(found, expected) < 1e-12


def test_bfloat16_states_are_summed_in_float32(key):
  """1,000 steps of 0.999 h + 0.001 give 0.63.

  In bfloat16, 0.999 is 1, and the sum would stop at 0.5.
  """
  params = jax.tree.map(
    lambda x: jnp.zeros_like(x, jnp.bfloat16), min_gru.init(key, D, H)
  )
  b = jnp.concatenate([jnp.full(H, -np.log(999.0)), jnp.ones(H)])
  params = params._replace(b=b.astype(jnp.bfloat16))
  state, _ = unroll(min_gru, params, None, jnp.zeros((1000, B, D)))
  assert state.h.dtype == jnp.bfloat16
  exact = 1 - (1 - 1 / (1 + np.exp(-float(params.b[0])))) ** 1000
  assert abs(state.h.astype(float) - exact).max() < 0.005


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_symbolic_length_is_exported(device, key):
  params, state, xs = arguments(min_gru, key)
  run = partial(unroll, min_gru)
  steps, batch = export.symbolic_shape("T, B")
  shapes = (
    params,
    state._replace(h=jax.ShapeDtypeStruct((batch, H), jnp.float64)),
    jax.ShapeDtypeStruct((steps, batch, D), jnp.float64),
  )
  with traced_for(device):
    exported = export.export(jax.jit(run))(*shapes)
  found = export.deserialize(exported.serialize()).call(params, state, xs)
  assert worst(found, run(params, state, xs)) < 1e-12
