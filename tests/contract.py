"""The table of all cells, with other implementations to compare them with.

To test a new cell, add a row: the tests read this table. By default, most tests
of every cell run for the EVERYDAY cells or the LSTM alone; `pytest -m ""` and
`.ci/run` run them for all.
"""

from typing import NamedTuple

import numpy as np
import pytest
from flax import linen

from lstm_jax import (
  coupled_lstm,
  gru,
  gru_reset_before,
  layernorm_lstm,
  lru,
  lstm,
  min_gru,
  min_lstm,
  mogrifier_lstm,
  peephole_lstm,
  projected_lstm,
  rnn,
  slstm,
)
from lstm_jax.cells import RELU
from lstm_jax.testing.mutation import terms
from tests import oracles


class Row(NamedTuple):
  """A cell, and the implementations that it is compared with."""

  cell: object
  oracle: object  # the same in NumPy, of `oracles`
  forget: int | None = None  # index of the gate whose initial bias is 1
  flax: object = None  # the class of a linen cell, if there is one
  to_flax: object = None  # params -> the linen cell's variables
  torch: str = ""  # the name of a PyTorch module, if there is one
  to_torch: object = None  # params -> its state_dict, as NumPy arrays


def _gates(params, names):
  """Return each gate's (w_x, w_h, b), by name."""
  count = len(names)
  parts = (np.split(leaf, count, axis=-1) for leaf in params[:3])
  return dict(zip(names, zip(*parts, strict=True), strict=True))


def _lstm_to_flax(params):
  result = {}
  for name, (w_x, w_h, b) in _gates(params, "ifgo").items():
    result[f"i{name}"] = {"kernel": w_x}
    result[f"h{name}"] = {"kernel": w_h, "bias": b}
  return {"params": result}


def _gru_to_flax(params):
  result = {}
  for name, (w_x, w_h, b) in _gates(params, "rzn").items():
    result[f"i{name}"] = {"kernel": w_x, "bias": b}
    result[f"h{name}"] = {"kernel": w_h}
  result["hn"]["bias"] = params.b_n
  return {"params": result}


def _rnn_to_flax(params):
  i = {"kernel": params.w_x, "bias": params.b}
  return {"params": {"i": i, "h": {"kernel": params.w_h}}}


def _to_torch(params):
  w_x, w_h, b = (np.asarray(leaf) for leaf in params[:3])
  other = np.zeros_like(b)  # the second bias; of a GRU, it ends with b_n
  if hasattr(params, "b_n"):
    other[-len(params.b_n) :] = params.b_n
  return {
    "weight_ih_l0": w_x.T,
    "weight_hh_l0": w_h.T,
    "bias_ih_l0": b,
    "bias_hh_l0": other,
  }


TABLE = {
  "lstm": Row(
    lstm,
    oracles.lstm,
    1,
    linen.OptimizedLSTMCell,
    _lstm_to_flax,
    "LSTM",
    _to_torch,
  ),
  "layernorm_lstm": Row(layernorm_lstm, oracles.layernorm_lstm, 1),
  "projected_lstm": Row(projected_lstm, oracles.projected_lstm, 1),
  "peephole_lstm": Row(peephole_lstm, oracles.peephole_lstm, 1),
  "coupled_lstm": Row(coupled_lstm, oracles.coupled_lstm, 0),
  "mogrifier_lstm": Row(mogrifier_lstm, oracles.mogrifier_lstm, 1),
  "slstm": Row(slstm, oracles.slstm, 1),
  "gru": Row(
    gru,
    oracles.gru,
    None,
    linen.GRUCell,
    _gru_to_flax,
    "GRU",
    _to_torch,
  ),
  "rnn": Row(
    rnn,
    oracles.rnn,
    None,
    linen.SimpleCell,
    _rnn_to_flax,
    "RNN",
    _to_torch,
  ),
  "min_gru": Row(min_gru, oracles.min_gru),
  "min_lstm": Row(min_lstm, oracles.min_lstm, 0),
  "lru": Row(lru, oracles.lru),
  "gru_reset_before": Row(gru_reset_before, oracles.gru_reset_before),
  "relu_rnn": Row(rnn.with_activation(RELU), oracles.relu_rnn),
}

EVERYDAY = "lstm", "gru"
EXHAUSTIVE = pytest.mark.exhaustive

# Enough for code that only calls a cell's functions, such as that of masks or
# of several layers: states of two arrays and of one, outputs of another size
# than the gates, and a linear recurrence.
REPRESENTATIVES = "lstm", "gru", "projected_lstm", "min_gru"


def _marks(name, everyday=EVERYDAY):
  return [] if name in everyday else EXHAUSTIVE


TAKE_TOKENS = [
  name
  for name, row in TABLE.items()
  if getattr(row.cell, "takes_tokens", False)
]


def each_cell(names, points, *, others, everyday=None):
  """Parametrize a test by the cell and by other parameters.

  A point is one choice of the other parameters. The LSTM is tested at all of
  them, and every other cell at some. That is enough for code that only calls a
  cell's functions: if it is right at one point for a cell, and at all points
  for the LSTM, it is right everywhere.

  Args:
    names: the names of the parameters besides `cell`, as pytest takes them.
    points: the LSTM's points: values, or tuples of values for several names.
    others: the points of every other cell.
    everyday: the points at which the EVERYDAY cells run by default; None for
      all.
  """
  names = (names,) if isinstance(names, str) else tuple(names)
  cases = []
  for name, row in TABLE.items():
    for point in points if name == "lstm" else others:
      values = point if len(names) > 1 else (point,)
      by_default = everyday is None or point in everyday
      label = "-".join(map(str, (name, *values)))
      marks = _marks(name) if by_default else EXHAUSTIVE
      cases.append(pytest.param(row.cell, *values, id=label, marks=marks))
  return pytest.mark.parametrize(("cell", *names), cases)


def _each(parameter, names=TABLE, everyday=EVERYDAY):
  """Parametrize a test by the "name", "row" or "cell" of some rows."""
  values = {
    "name": lambda name: name,
    "row": TABLE.__getitem__,
    "cell": lambda name: TABLE[name].cell,
  }
  return pytest.mark.parametrize(
    parameter,
    [
      pytest.param(
        values[parameter](name), id=name, marks=_marks(name, everyday)
      )
      for name in names
    ],
  )


NAMES, ROWS, CELLS = _each("name"), _each("row"), _each("cell")
TOKEN_ROWS = _each("row", TAKE_TOKENS)
TOKEN_CELLS = _each("cell", TAKE_TOKENS)
LSTM_EVERY_DAY = _each("cell", everyday=["lstm"])
REPRESENTATIVE_CELLS = _each("cell", REPRESENTATIVES, everyday=["lstm"])
# Each term of a backward that `plant` can scale.
PLANTS = pytest.mark.parametrize(
  ("name", "term"),
  [
    pytest.param(name, term, marks=_marks(name, ["lstm"]))
    for name, row in TABLE.items()
    for term in terms(row.cell)
  ],
)
