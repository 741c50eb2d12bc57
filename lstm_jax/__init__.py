"""Recurrent networks in JAX, as pure functions with gradients derived by hand.

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax import lstm, unroll
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state, hs = unroll(lstm, params, None, jnp.ones((7, 2, 3)))
  >>> hs.shape
  (7, 2, 5)

A cell is one time step: a module, or an object with the same functions. The
module's docstring has the equations of the forward and backward passes. The
modules are `lstm`, `gru` and `rnn`; their variants
`layernorm_lstm`, `projected_lstm`, `peephole_lstm`, `coupled_lstm`,
`mogrifier_lstm`, `slstm` and `gru_reset_before`; and `min_gru`, `min_lstm` and
`lru`, whose time steps `unroll` computes all at once with `Explicit`, its
default. `rnn.with_activation`, and `with_activations` of `lstm`, `gru` and
`gru_reset_before`, return cells with other activations. `unroll` applies a
cell over time, `unroll_both` in both directions, and `unroll_stack` in layers.
`Explicit`, `Step` and `Autodiff` choose how the gradient is computed.
`regularize` draws dropout and zoneout.
`gradcheck` compares a gradient with autodiff and with finite differences.
`lstm_jax.language` and `lstm_jax.training` hold a language model and its
training.
"""

from lstm_jax.cells import Cell as Cell
from lstm_jax.cells import CoupledLSTMParams as CoupledLSTMParams
from lstm_jax.cells import GRUParams as GRUParams
from lstm_jax.cells import GRUState as GRUState
from lstm_jax.cells import LayerNormLSTMParams as LayerNormLSTMParams
from lstm_jax.cells import LowRank as LowRank
from lstm_jax.cells import LRUParams as LRUParams
from lstm_jax.cells import LSTMParams as LSTMParams
from lstm_jax.cells import LSTMState as LSTMState
from lstm_jax.cells import MinGRUParams as MinGRUParams
from lstm_jax.cells import MinLSTMParams as MinLSTMParams
from lstm_jax.cells import MogrifierLSTMParams as MogrifierLSTMParams
from lstm_jax.cells import PeepholeLSTMParams as PeepholeLSTMParams
from lstm_jax.cells import ProjectedLSTMParams as ProjectedLSTMParams
from lstm_jax.cells import ResetBeforeGRUParams as ResetBeforeGRUParams
from lstm_jax.cells import RNNParams as RNNParams
from lstm_jax.cells import RNNState as RNNState
from lstm_jax.cells import SLSTMParams as SLSTMParams
from lstm_jax.cells import SLSTMState as SLSTMState
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
from lstm_jax.sequence import Autodiff as Autodiff
from lstm_jax.sequence import Directions as Directions
from lstm_jax.sequence import Explicit as Explicit
from lstm_jax.sequence import Step as Step
from lstm_jax.sequence import init_stack as init_stack
from lstm_jax.sequence import initial_stack_state as initial_stack_state
from lstm_jax.sequence import regularize as regularize
from lstm_jax.sequence import unroll as unroll
from lstm_jax.sequence import unroll_both as unroll_both
from lstm_jax.sequence import unroll_stack as unroll_stack
from lstm_jax.testing import Report as Report
from lstm_jax.testing import gradcheck as gradcheck

__version__ = "0.1.0"
