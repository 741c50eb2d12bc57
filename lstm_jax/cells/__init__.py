"""One step of each cell: its equations, forward, backward and `step`."""

from lstm_jax.cells import coupled_lstm as coupled_lstm
from lstm_jax.cells import gru as gru
from lstm_jax.cells import gru_reset_before as gru_reset_before
from lstm_jax.cells import layernorm_lstm as layernorm_lstm
from lstm_jax.cells import lstm as lstm
from lstm_jax.cells import peephole_lstm as peephole_lstm
from lstm_jax.cells import projected_lstm as projected_lstm
from lstm_jax.cells import rnn as rnn
from lstm_jax.cells.activations import RELU as RELU
from lstm_jax.cells.activations import SIGMOID as SIGMOID
from lstm_jax.cells.activations import TANH as TANH
from lstm_jax.cells.activations import Activation as Activation
from lstm_jax.cells.activations import make_hard_sigmoid as make_hard_sigmoid
from lstm_jax.cells.cell import Cell as Cell
from lstm_jax.cells.cell import CellModule
from lstm_jax.cells.coupled_lstm import CoupledLSTMParams as CoupledLSTMParams
from lstm_jax.cells.gru import GRUParams as GRUParams
from lstm_jax.cells.gru import GRUState as GRUState
from lstm_jax.cells.gru_reset_before import (
  ResetBeforeGRUParams as ResetBeforeGRUParams,
)
from lstm_jax.cells.layernorm_lstm import (
  LayerNormLSTMParams as LayerNormLSTMParams,
)
from lstm_jax.cells.lstm import LSTMParams as LSTMParams
from lstm_jax.cells.lstm import LSTMState as LSTMState
from lstm_jax.cells.peephole_lstm import (
  PeepholeLSTMParams as PeepholeLSTMParams,
)
from lstm_jax.cells.projected_lstm import (
  ProjectedLSTMParams as ProjectedLSTMParams,
)
from lstm_jax.cells.rnn import RNNParams as RNNParams
from lstm_jax.cells.rnn import RNNState as RNNState

for _cell in (
  coupled_lstm,
  gru,
  gru_reset_before,
  layernorm_lstm,
  lstm,
  peephole_lstm,
  projected_lstm,
  rnn,
):
  _cell.__class__ = CellModule

del _cell
