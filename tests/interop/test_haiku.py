"""Weights from and to Haiku: with Haiku as the oracle, and without it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru_reset_before, lstm, rnn, unroll
from lstm_jax.cells import RELU
from lstm_jax.interop import haiku as interop
from tests.draws import B, D, H, T, normal_like, worst

KINDS = {  # of a core: its class, its options, our cell and the params' module
  "LSTM": ("LSTM", {}, lstm, lstm),
  "GRU": ("GRU", {}, gru_reset_before, gru_reset_before),
  "VanillaRNN": ("VanillaRNN", {}, rnn.with_activation(RELU), rnn),
  "one bias": (
    "VanillaRNN",
    {"double_bias": False},
    rnn.with_activation(RELU),
    rnn,
  ),
}
EACH = pytest.mark.parametrize("kind", KINDS)
# to_haiku subtracts 1 from the forget gate's bias, and from_haiku adds it: both
# round.
ROUNDED = 1e-15


@pytest.fixture(scope="module")
def haiku():
  return pytest.importorskip("haiku", reason="Haiku is not installed")


@pytest.fixture(autouse=True)
def haiku_promotion():
  """Let Haiku add a bias [K] to an array [..., K]."""
  with jax.numpy_rank_promotion("allow"):
    yield


def draw(key, kind):
  params = KINDS[kind][3].init(key, D, H, jnp.float64)
  return jax.tree.map(lambda x: x / 2, normal_like(key, params))


def exported(kind, params, **options):
  return interop.to_haiku(params, **KINDS[kind][1], **options)


def of_haiku(haiku, kind, name=None):
  """Return Haiku's network of one core, with functions `init` and `apply`."""
  kind, options, *_ = KINDS[kind]

  @haiku.without_apply_rng
  @haiku.transform
  def network(xs):
    core = getattr(haiku, kind)(H, **options, name=name)
    state = core.initial_state(xs.shape[1])
    state = jax.tree.map(lambda x: x.astype(xs.dtype), state)
    return haiku.dynamic_unroll(core, xs, state)[0]

  return network


@pytest.mark.everyday(1)
@EACH
def test_outputs_and_every_gradient_are_those_of_haiku(kind, haiku, key):
  xs = normal_like(key, np.zeros((T, B, D)))
  network = of_haiku(haiku, kind)
  weights = normal_like(key, network.init(key, xs))
  weights = jax.tree.map(lambda x: x / 2, weights)
  cell, params = interop.from_haiku(weights)
  assert cell is KINDS[kind][2] and params.w_x.dtype == jnp.float64
  expected, pullback = jax.vjp(network.apply, weights, xs)
  cotangent = normal_like(jax.random.key(1), expected)
  d_weights, d_xs = pullback(cotangent)
  found, pullback = jax.vjp(
    lambda params, xs: unroll(cell, params, None, xs)[1], params, xs
  )
  d_params, found_d_xs = pullback(cotangent)
  assert worst(found, expected) < 1e-12
  assert worst(found_d_xs, d_xs) < 1e-12
  found = exported(kind, d_params, forget_bias=0)
  if kind == "VanillaRNN":  # the first bias has the gradient of the sum
    found["vanilla_rnn/linear_1"]["b"] = found["vanilla_rnn/linear"]["b"]
  assert worst(found, d_weights) < 1e-12


@EACH
def test_haiku_computes_the_same_with_exported_weights(kind, haiku, key):
  params = draw(key, kind)
  network = of_haiku(haiku, kind, name="own")
  weights = exported(kind, params, name="own")
  xs = normal_like(key, np.zeros((T, B, D)))
  shapes = jax.eval_shape(network.init, key, xs)
  assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, shapes)
  _, found = unroll(KINDS[kind][2], params, None, xs)
  assert worst(found, network.apply(weights, xs)) < 1e-12


def test_a_core_of_a_deep_rnn_of_haiku_is_read_by_its_name(haiku, key):
  xs = normal_like(key, np.zeros((T, B, D)))

  @haiku.without_apply_rng
  @haiku.transform
  def network(xs):
    cores = [haiku.LSTM(H), haiku.ResetCore(haiku.GRU(H)), haiku.LSTM(H)]
    states = [core.initial_state(B) for core in cores]
    hs, _ = haiku.dynamic_unroll(cores[0], xs, states[0])
    hs, _ = haiku.dynamic_unroll(cores[1], (hs, starts), states[1])
    hs, _ = haiku.dynamic_unroll(cores[2], hs, states[2])
    return haiku.Linear(3)(hs), hs

  starts = jnp.arange(T * B).reshape(T, B) % 4 == 0
  weights = normal_like(key, network.init(key, xs))
  _, expected = network.apply(weights, xs)
  found = xs
  for name, reset in (("lstm", None), ("gru", starts), ("lstm_1", None)):
    cell, params = interop.from_haiku(weights, name=name)
    _, found = unroll(cell, params, None, found, reset=reset)
  assert worst(found, expected) < 1e-12
  with pytest.raises(ValueError, match=r"^weights must be of one core, or na"):
    interop.from_haiku(weights)


# Without Haiku.


@EACH
def test_a_round_trip_keeps_the_weights_of_haiku(kind, key, monkeypatch):
  monkeypatch.setitem(sys.modules, "haiku", None)
  params = draw(key, kind)
  for name in (None, "net/~/core", "linear"):
    weights = exported(kind, params, name=name)
    # Other modules are ignored if the core is named.
    others = {"net/linear": {}, "net/~/core_1": {}} if name else {}
    cell, same = interop.from_haiku({**weights, **others}, name=name)
    assert cell is KINDS[kind][2] and worst(same, params) < ROUNDED
  traced = jax.jit(lambda w: interop.from_haiku(w)[1])
  assert worst(traced(exported(kind, params)), params) < ROUNDED
  source = jax.tree.map(jnp.copy, params)
  weights = exported(kind, source)
  jax.tree.map(lambda x: x.delete(), source)  # as donation does
  weights = jax.tree.map(np.array, weights)
  _, same = interop.from_haiku(weights)
  for x in jax.tree.leaves(weights):
    x[...] = 9  # does not reach the params
  assert worst(same, params) < ROUNDED


def test_a_gru_may_have_the_name_of_a_linear_layer(key):
  params = draw(key, "GRU")
  weights = interop.to_haiku(params, name="policy/linear")
  cell, same = interop.from_haiku(weights)
  assert cell is gru_reset_before and worst(same, params) == 0


def test_any_forget_bias_is_subtracted_from_the_forget_gate_only():
  params = lstm.LSTMParams(np.ones((D, 8)), np.ones((2, 8)), np.ones(8))
  b = interop.to_haiku(params, forget_bias=0.25)["lstm/linear"]["b"]
  assert b.tolist() == [1, 1, 1, 1, 0.75, 0.75, 1, 1]  # i, g, f, o


def test_two_biases_of_haiku_are_added(key):
  params = draw(key, "VanillaRNN")
  weights = interop.to_haiku(params)
  weights["vanilla_rnn/linear_1"]["b"] += 0.5
  _, found = interop.from_haiku(weights)
  assert worst(found, params._replace(b=params.b + 0.5)) == 0


@pytest.mark.exhaustive
def test_bfloat16_weights_of_haiku_keep_their_dtype(key):
  for kind in KINDS:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(key, kind))
    _, same = interop.from_haiku(exported(kind, params))
    assert {leaf.dtype for leaf in same} == {jnp.dtype(jnp.bfloat16)}
