"""What the converters of Haiku's weights refuse."""

import numpy as np
import pytest

from lstm_jax import gru
from lstm_jax.interop import haiku as interop
from tests.draws import D, H

# With D = 4 and H = 6: D + H is 10, 3H is 18 and 4H is 24.
W = {n: np.ones((10, n)) for n in (18, 24)}
LSTM = {"w": W[24], "b": np.ones(24)}
GRU = {"w_i": np.ones((4, 18)), "w_h": np.ones((6, 18)), "b": np.ones(18)}
# The two linear layers of a VanillaRNN, of its inputs and of its state.
FIRST = {"w": np.ones((4, 6)), "b": np.ones(6)}
SECOND = {"w": np.ones((6, 6)), "b": np.ones(6)}


@pytest.mark.parametrize(
  ("weights", "name", "message"),
  [
    (3, None, "^weights must be a mapping from paths .* to arrays, got int$"),
    ({"lstm": 3}, None, "^weights must be a .*, got {'lstm': int}$"),
    ({0: LSTM}, None, "^weights must be a .*, got {0: dict}$"),
    ({}, None, "^weights must be of one core, or name .*, got nothing$"),
    (
      {"lstm/linear": LSTM, "gru": GRU},
      None,
      "^weights must be of one core, or name must say which, "
      "got gru, lstm/linear",
    ),
    ({"lstm/linear": LSTM}, "gru", "^there is no core 'gru', got lstm/linear$"),
    ({"net/lstm/linear": LSTM}, "lstm", "^there is no core 'lstm', got net/ls"),
    (
      {"a/linear": LSTM, "a/norm": {}},
      "a",
      "^expected the parameters of an LSTM, .*, got a/linear, a/norm$",
    ),
    (
      {"lstm/linear": LSTM},
      "lstm/linear",
      "^name must be the path of an LSTM, GRU or VanillaRNN, such as 'lstm', "
      "got 'lstm/linear', that of a linear layer$",
    ),
    ({"linear": LSTM}, None, "^expected .* LSTM, GRU or Van.*, got linear$"),
    ({"a/linear_1": SECOND}, None, "^expected .*, got a/linear_1$"),
    ({"a/linear": {"w": 1}}, None, "^a/linear must have w, b, got w$"),
    ({"a": {}}, None, "^a must have w_i, w_h, b, got nothing$"),
    (
      {"a/linear": {**LSTM, "b": np.ones(24, int)}},
      None,
      "^a/linear/b must hold floats, got int64$",
    ),
    (
      {"a/linear": {**LSTM, "b": np.ones((2, 24))}},
      None,
      r"^a/linear/b must be \[any\], got \(2, 24\)$",
    ),
    (
      {"a/linear": {**LSTM, "w": W[18]}},
      None,
      r"^a/linear/w must be \[any, 24\], got \(10, 18\)$",
    ),
    (
      {"a/linear": {**LSTM, "b": np.ones(25)}},
      None,
      r"^a/linear/b must be \[4H\], got \(25,\)$",
    ),
    (
      {"a/linear": {"w": np.ones((10, 0)), "b": np.ones(0)}},
      None,
      r"^a/linear/b must be \[4H\], got \(0,\)$",
    ),
    (
      {"a/linear": {**LSTM, "w": np.ones((6, 24))}},
      None,
      r"^a/linear/w must be \[D\+H, 4H\] and b \[4H\], got \(6, 24\) and",
    ),
    (
      {"g": {**GRU, "w_h": np.ones((6, 24))}},
      None,
      r"^g/w_h must be \[6, 18\], got \(6, 24\)$",
    ),
    (
      {"g": {**GRU, "w_h": np.ones(())}},
      None,
      r"^g/w_h must be \[any, any\], got \(\)$",
    ),
    (
      {"g": {**GRU, "w_i": np.ones((4, 6))}},
      None,
      r"^g/w_i must be \[any, 18\], got \(4, 6\)$",
    ),
    (
      {"g": {**GRU, "b": np.ones(6)}},
      None,
      r"^g/b must be \[18\], got \(6,\)$",
    ),
    (
      {"r/linear": FIRST, "r/linear_1": FIRST},
      None,
      r"^r/linear_1/w must be \[4, 4\], got \(4, 6\)$",
    ),
    (
      {"r/linear": FIRST, "r/linear_1": {**SECOND, "scale": np.ones(6)}},
      None,
      "^r/linear_1 must have w, b, got b, scale, w$",
    ),
    (
      {"r/linear": {**FIRST, "w": np.ones((4, 5))}, "r/linear_1": SECOND},
      None,
      r"^r/linear/w must be \[any, 6\], got \(4, 5\)$",
    ),
    (
      {"r/linear": {**FIRST, "b": np.ones(5)}, "r/linear_1": SECOND},
      None,
      r"^r/linear/b must be \[6\], got \(5,\)$",
    ),
    (
      {"r/linear": FIRST, "r/linear_1": {**SECOND, "b": np.ones(5)}},
      None,
      r"^r/linear_1/b must be \[6\], got \(5,\)$",
    ),
  ],
)
def test_weights_that_are_no_core_of_haiku_are_refused(weights, name, message):
  with pytest.raises(ValueError, match=message):
    interop.from_haiku(weights, name=name)


def test_a_cell_that_haiku_does_not_have_is_refused(key):
  with pytest.raises(
    ValueError, match=r"^params must be of lstm, .*, got GRUParams$"
  ):
    interop.to_haiku(gru.init(key, D, H))
