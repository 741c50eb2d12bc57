"""Recurrent networks in JAX, as pure functions with gradients by hand.

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax import lstm, unroll
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = lstm.initial_state(params, batch_shape=(2,))
  >>> state, hs = unroll(lstm, params, state, jnp.ones((7, 2, 3)))
  >>> hs.shape
  (7, 2, 5)

`lstm`, `gru` and `rnn` are one step each, with the equations of their forward
and backward passes; so are the variants `layernorm_lstm`, `projected_lstm`,
`peephole_lstm` and `coupled_lstm`. `unroll`, `unroll_both` and `unroll_stack`
go over time, in both directions, and over depth; `regularize` draws dropout and
zoneout;
`gradcheck` compares a gradient with autodiff and with differences; `language`
and `training` make a language model of them.
"""

from lstm_jax.cells import coupled_lstm as coupled_lstm
from lstm_jax.cells import gru as gru
from lstm_jax.cells import layernorm_lstm as layernorm_lstm
from lstm_jax.cells import lstm as lstm
from lstm_jax.cells import peephole_lstm as peephole_lstm
from lstm_jax.cells import projected_lstm as projected_lstm
from lstm_jax.cells import rnn as rnn
from lstm_jax.sequence import Directions as Directions
from lstm_jax.sequence import regularize as regularize
from lstm_jax.sequence import unroll as unroll
from lstm_jax.sequence import unroll_both as unroll_both
from lstm_jax.sequence import unroll_stack as unroll_stack
from lstm_jax.testing._gradcheck import gradcheck as gradcheck

__version__ = "0.1.0"
