"""Weights from and to Equinox: with Equinox as the oracle, and without it."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, min_gru, rnn, unroll
from lstm_jax.interop import equinox as interop
from tests.draws import B, D, H, T, normal_like, worst

CELLS = {"LSTMCell": lstm, "GRUCell": gru}
EACH = pytest.mark.parametrize("kind", CELLS)
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])


@pytest.fixture(scope="module")
def equinox():
  return pytest.importorskip("equinox", reason="Equinox is not installed")


def draw(key, kind, bias=True):
  params = CELLS[kind].init(key, D, H, jnp.float64)
  params = normal_like(key, params)
  return params if bias else without_bias(params)


def without_bias(params):
  return jax.tree.map(lambda w: w if w.ndim > 1 else 0 * w, params)


def of_equinox(kind, module, xs):
  """Return the outputs [T, B, H] of an Equinox cell in a scan."""

  def body(state, x):
    state = jax.vmap(module)(x, state)
    return state, state[0] if kind == "LSTMCell" else state

  zeros = jnp.zeros((B, H))
  state = (zeros, zeros) if kind == "LSTMCell" else zeros
  return jax.lax.scan(body, state, xs)[1]


@pytest.mark.everyday(1)
@EACH
@BIAS
def test_outputs_and_every_gradient_are_those_of_equinox(
  kind, bias, equinox, key
):
  module = getattr(equinox.nn, kind)(D, H, use_bias=bias, key=key)
  cell, params = interop.from_equinox(module)
  assert cell is CELLS[kind] and params.w_x.dtype == jnp.float64
  xs = normal_like(key, np.zeros((T, B, D)))
  expected, pullback = jax.vjp(
    lambda module, xs: of_equinox(kind, module, xs), module, xs
  )
  cotangent = normal_like(jax.random.key(1), expected)
  d_module, d_xs = pullback(cotangent)
  found, pullback = jax.vjp(
    lambda params, xs: unroll(cell, params, None, xs)[1], params, xs
  )
  d_params, found_d_xs = pullback(cotangent)
  assert worst(found, expected) < 1e-12
  assert worst(found_d_xs, d_xs) < 1e-12
  _, same = interop.from_equinox(d_module)
  assert worst(same, d_params if bias else without_bias(d_params)) < 1e-12
  if bias:
    assert worst(interop.to_equinox(d_params), d_module) < 1e-12


@EACH
@BIAS
def test_equinox_computes_the_same_with_exported_weights(
  kind, bias, equinox, key
):
  params = draw(key, kind, bias)
  module = interop.to_equinox(params, bias=bias)
  assert type(module) is getattr(equinox.nn, kind)
  assert (module.input_size, module.hidden_size, module.use_bias) == (
    (D, H, bias)
  )
  xs = normal_like(key, np.zeros((T, B, D)))
  _, found = unroll(CELLS[kind], params, None, xs)
  assert worst(found, of_equinox(kind, module, xs)) < 1e-12
  source = jax.tree.map(jnp.copy, params)
  module = interop.to_equinox(source, bias=bias)
  jax.tree.map(lambda x: x.delete(), source)  # as donation does
  cell, same = interop.from_equinox(module)
  assert cell is CELLS[kind] and worst(same, params) == 0
  if bias:
    traced = jax.jit(lambda p: interop.from_equinox(interop.to_equinox(p))[1])
    assert worst(traced(params), params) == 0


def test_equinox_keeps_bfloat16(equinox, key):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(key, "GRUCell"))
  module = interop.to_equinox(params)
  assert module.weight_ih.dtype == module.bias_n.dtype == jnp.bfloat16
  assert worst(interop.from_equinox(module)[1], params) == 0


# Without Equinox.


def attributes(params, **changes):
  """Return an object with the attributes of an Equinox cell, in NumPy."""
  arrays = {
    "weight_ih": np.array(params.w_x.T),
    "weight_hh": np.array(params.w_h.T),
    "bias": np.array(params.b),
  }
  if hasattr(params, "b_n"):
    arrays["bias_n"] = np.array(params.b_n)
  return SimpleNamespace(**{"use_bias": True, **arrays, **changes})


@EACH
def test_a_cell_is_read_without_equinox(kind, key, monkeypatch):
  monkeypatch.setitem(sys.modules, "equinox", None)
  params = draw(key, kind)
  module = attributes(params)
  cell, same = interop.from_equinox(module)
  assert cell is CELLS[kind]
  for x in vars(module).values():
    if isinstance(x, np.ndarray):
      x[...] = 9  # does not reach the params
  assert worst(same, params) == 0
  _, same = interop.from_equinox(attributes(params, use_bias=False))
  assert worst(same, without_bias(params)) == 0
  narrow = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  _, same = interop.from_equinox(attributes(narrow, use_bias=False))
  assert {leaf.dtype for leaf in same} == {jnp.dtype(jnp.float32)}
  with pytest.raises(ModuleNotFoundError):
    interop.to_equinox(params)


# In tests.draws, D is 4 and H 6: so 3H is 18, and 4H is 24.
@pytest.mark.parametrize(
  ("kind", "changes", "message"),
  [
    ("LSTMCell", {"weight_hh": None}, "^weight_hh is missing$"),
    ("LSTMCell", {"bias": None}, "^bias is missing$"),
    ("GRUCell", {"bias_n": None}, "^bias_n is missing$"),
    (
      "LSTMCell",
      {"weight_hh": np.ones((18, 6))},
      r"^weight_hh of this SimpleNamespace must be \[4H, H\], got \(18, 6\)$",
    ),
    (
      "GRUCell",
      {"weight_hh": np.ones((24, 6))},
      r"^weight_hh of this .* must be \[3H, H\], got \(24, 6\)$",
    ),
    (
      "GRUCell",
      {"weight_hh": np.ones((2, 18, 6))},
      r"^weight_hh must be \[any, any\], got \(2, 18, 6\)$",
    ),
    (
      "LSTMCell",
      {"weight_ih": np.ones((18, 4))},
      r"^weight_ih must be \[24, any\], got \(18, 4\)$",
    ),
    (
      "LSTMCell",
      {"bias": np.ones(6)},
      r"^bias must be \[24\], got \(6,\)$",
    ),
    ("GRUCell", {"bias_n": np.ones(5)}, r"^bias_n must be \[6\], got \(5,\)$"),
    (
      "GRUCell",
      {"bias_n": np.ones(6, int)},
      "^bias_n must hold floats, got int64$",
    ),
  ],
)
def test_a_cell_that_does_not_fit_is_refused(kind, changes, message, key):
  module = attributes(draw(key, kind), **changes)
  with pytest.raises(ValueError, match=message):
    interop.from_equinox(module)


def test_what_equinox_does_not_have_is_refused(key):
  with pytest.raises(
    ValueError, match=r"^expected an LSTMCell or GRUCell .*, got builtins.dict$"
  ):
    interop.from_equinox({})
  with pytest.raises(ValueError, match=r"^Equinox has no cell with RNNParams$"):
    interop.to_equinox(rnn.init(key, D, H))
  with pytest.raises(ValueError, match=r"^Equinox has no .* MinGRUParams$"):
    interop.to_equinox(min_gru.init(key, D, H))
  params = without_bias(draw(key, "GRUCell"))._replace(b_n=-jnp.ones(H))
  message = r"^b_n must be 0 with bias=False, got magnitudes of up to 1$"
  with pytest.raises(ValueError, match=message):
    interop.to_equinox(params, bias=False)
  with pytest.raises(ValueError, match=r"^b must not be traced with bias=Fal"):
    jax.jit(lambda p: interop.to_equinox(p, bias=False))(params)
