"""Arrays and cells that cannot be converted from or to Keras."""

import numpy as np
import pytest

from lstm_jax import Directions, gru_reset_before, lstm, peephole_lstm
from lstm_jax.interop import keras as interop
from tests.draws import D, H
from tests.interop.keras_layers import draw


def test_directions_of_two_cells_are_refused(key):
  pair = Directions(draw(key, "LSTM"), draw(key, "GRU"))
  message = "must have one cell, got LSTMParams, GRUParams"
  with pytest.raises(ValueError, match=message):
    interop.to_keras(pair)


def test_params_of_several_input_sizes_or_dtypes_are_refused(key):
  pair = Directions(*(lstm.init(key, size, H) for size in (D, D + 1)))
  with pytest.raises(ValueError, match=f"one size, got {D} and {D + 1}; stack"):
    interop.to_keras(pair)
  params = lstm.init(key, D, H)
  params = params._replace(b=params.b.astype(np.float16))
  with pytest.raises(ValueError, match=r"^params must have one dtype, got "):
    interop.to_keras(params)


# Kernels of a GRU and of an LSTM. In tests.draws, D is 4 and H 6: so 3H is 18,
# and 4H is 24.
G = np.ones((D, 3 * H)), np.ones((H, 3 * H))
L = np.ones((D, 4 * H)), np.ones((H, 4 * H))


@pytest.mark.parametrize(
  ("weights", "options", "message"),
  [
    (3, {}, r"^weights must be what .* get_weights\(\) returns, .* got int$"),
    (np.ones((3, 4, 4)), {}, "^weights must be what .*, got ndarray$"),
    ([[*L], [*L]], {}, "^kernel cannot be read as an array: setting an array "),
    (L[:1], {}, "^weights must be the 2 or 3 arrays of a layer, .* got 1$"),
    ((*L, *L, L[0]), {}, "^weights must be the .* of a Bidirectional, got 5$"),
    (
      (L[0], np.ones((H, 5))),
      {},
      r"^recurrent_kernel must be \[H, 4H\], .*, 5",
    ),
    ((L[0], np.ones(H)), {}, r"^recurrent_kernel must be .* got \(6,\)$"),
    ((L[0], np.ones((0, 0))), {}, "^recurrent_kernel must be "),
    ((G[0], L[1]), {}, r"^kernel must be \[any, 24\], got \(4, 18\)$"),
    ((*L, np.ones(3)), {}, r"^bias must be \[24\], got \(3,\)$"),
    ((*L, np.ones(24, int)), {}, "^bias must hold floats, got int64$"),
    ((*G, np.ones((3, 18))), {}, r"^bias must be \[2, 18\], got \(3, 18\)$"),
    (
      (L[0], L[1].astype("float32")),
      {},
      "^arrays must have one dtype, got {'kernel': 'float64', 'recu.* 'float32",
    ),
    (G, {}, "^bias is missing: reset_after must say which GRU this is$"),
    (
      G,
      {"reset_after": "false"},
      "^reset_after must be True, False or None, got 'false'$",
    ),
    (
      (*G, np.ones(18)),
      {"reset_after": True},
      r"^bias must be \[2, 3H\] with reset_after=True, got \(18,\)$",
    ),
    (
      (*G, np.ones((2, 18))),
      {"reset_after": False},
      r"^bias must be \[3H\] with reset_after=False, got \(2, 18\)$",
    ),
    (
      (*L, *G),
      {"reset_after": True},
      "^both directions must have one cell, got lstm, gru$",
    ),
    (
      (*L, np.ones((9, 24)), L[1]),
      {},
      "^the kernels of both .* inputs of one size, got 4 and 9; st",
    ),
    ((*L, L[0], G[1]), {}, r"^backward kernel must be \[any, 18\], got"),
    (L, {"activation": "gelu"}, "^activation must be hard_s.* got 'gelu'$"),
    (L, {"recurrent_activation": 3}, "^recurrent_activation must be .* got 3$"),
    ({"a/kernel": L[0]}, {}, "^recurrent_kernel is missing, got kernel$"),
    (
      {"a/kernel": L[0], "b/kernel": L[0]},
      {},
      "one layer, got two with kernel",
    ),
    ({0: L[0]}, {}, "^a path must be a str, got 0$"),
    ({"a/gamma": L[0]}, {}, "^a path must end in kernel, .* got 'a/gamma'$"),
    (
      {"bi/forward_a/cell/kernel": L[0], "bi/forward_b/cell/kernel": L[0]},
      {},
      "one layer, got two with kernel",
    ),
    (
      {"bi/forwards/cell/kernel": L[0], "bi/b/cell/kernel": L[0]},
      {},
      "one layer, got two with kernel",
    ),
    (
      {"b/kernel": L[0], "a/recurrent_kernel": L[1]},
      {},
      r"^weights must be of one layer, got \['a', 'b'\]$",
    ),
    (
      {"backward_a/kernel": L[0]},
      {},
      "^recurrent_kernel is missing, got kernel$",
    ),
    (
      {"bi/forward_a/cell/recurrent_kernel": L[1], "bi/b/cell/kernel": L[0]},
      {},
      "^forward kernel is missing, got recurrent_kernel$",
    ),
  ],
)
def test_arrays_that_do_not_fit_are_refused(weights, options, message):
  with pytest.raises(ValueError, match=message):
    interop.from_keras(weights, **options)


def test_a_cell_that_keras_does_not_have_is_refused(key):
  with pytest.raises(
    ValueError, match="which Keras has, got PeepholeLSTMParams"
  ):
    interop.to_keras(peephole_lstm.init(key, D, H))


def test_params_of_this_library_are_refused(key):
  """In those of a GRU, r comes before z, and Keras has z before r."""
  params = gru_reset_before.init(key, D, H)
  with pytest.raises(ValueError, match=r"get_weights.*, got ResetBeforeGRUPa"):
    interop.from_keras(params)
