"""Convert Flax's weights, and run Flax's cells with `unroll`."""

from lstm_jax.interop.flax.modules import NNXRNN as NNXRNN
from lstm_jax.interop.flax.modules import LinenRNN as LinenRNN
from lstm_jax.interop.flax.scanned_rnn import scanned as scanned
from lstm_jax.interop.flax.weights import from_linen as from_linen
from lstm_jax.interop.flax.weights import from_nnx as from_nnx
from lstm_jax.interop.flax.weights import to_linen as to_linen
from lstm_jax.interop.flax.weights import to_nnx as to_nnx
