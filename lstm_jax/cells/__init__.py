"""The cells: one module each, with one time step, forward and backward."""

from types import ModuleType

from lstm_jax.cells import coupled_lstm as coupled_lstm
from lstm_jax.cells import gru as gru
from lstm_jax.cells import gru_reset_before as gru_reset_before
from lstm_jax.cells import layernorm_lstm as layernorm_lstm
from lstm_jax.cells import lru as lru
from lstm_jax.cells import lstm as lstm
from lstm_jax.cells import min_gru as min_gru
from lstm_jax.cells import min_lstm as min_lstm
from lstm_jax.cells import mogrifier_lstm as mogrifier_lstm
from lstm_jax.cells import peephole_lstm as peephole_lstm
from lstm_jax.cells import projected_lstm as projected_lstm
from lstm_jax.cells import rnn as rnn
from lstm_jax.cells import slstm as slstm
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
from lstm_jax.cells.low_rank import LowRank as LowRank
from lstm_jax.cells.lru import LRUParams as LRUParams
from lstm_jax.cells.lstm import LSTMParams as LSTMParams
from lstm_jax.cells.lstm import LSTMState as LSTMState
from lstm_jax.cells.min_gru import MinGRUParams as MinGRUParams
from lstm_jax.cells.min_lstm import MinLSTMParams as MinLSTMParams
from lstm_jax.cells.mogrifier_lstm import (
  MogrifierLSTMParams as MogrifierLSTMParams,
)
from lstm_jax.cells.peephole_lstm import (
  PeepholeLSTMParams as PeepholeLSTMParams,
)
from lstm_jax.cells.projected_lstm import (
  ProjectedLSTMParams as ProjectedLSTMParams,
)
from lstm_jax.cells.rnn import RNNParams as RNNParams
from lstm_jax.cells.rnn import RNNState as RNNState
from lstm_jax.cells.slstm import SLSTMParams as SLSTMParams
from lstm_jax.cells.slstm import SLSTMState as SLSTMState

# Give the cells imported above a type of module that can be pickled.
for _value in [*globals().values()]:
  if isinstance(_value, ModuleType) and hasattr(_value, "recur"):
    _value.__class__ = CellModule

del _value, ModuleType
