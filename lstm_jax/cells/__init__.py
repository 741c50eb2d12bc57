"""One step of a recurrent network: equations, forward, backward, `step`."""

from lstm_jax.cells import coupled_lstm as coupled_lstm
from lstm_jax.cells import gru as gru
from lstm_jax.cells import layernorm_lstm as layernorm_lstm
from lstm_jax.cells import lstm as lstm
from lstm_jax.cells import peephole_lstm as peephole_lstm
from lstm_jax.cells import projected_lstm as projected_lstm
from lstm_jax.cells import rnn as rnn
