"""Weights to and from Keras' LSTM, GRU, SimpleRNN and Bidirectional layers.

`from_keras` and `to_keras` take and return the arrays of a layer, `load` and
`load_weights` read a file. Keras need not be installed.
"""

from lstm_jax.interop.keras.files import load as load
from lstm_jax.interop.keras.files import load_weights as load_weights
from lstm_jax.interop.keras.weights import from_keras as from_keras
from lstm_jax.interop.keras.weights import to_keras as to_keras
