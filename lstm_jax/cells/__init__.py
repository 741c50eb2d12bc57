"""One step of a recurrent network: equations, forward, backward, `step`."""

from lstm_jax.cells import gru as gru
from lstm_jax.cells import layernorm_lstm as layernorm_lstm
from lstm_jax.cells import lstm as lstm
from lstm_jax.cells import rnn as rnn
