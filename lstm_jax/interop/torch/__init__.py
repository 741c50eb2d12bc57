"""Weights to and from PyTorch's nn.LSTM, nn.GRU and nn.RNN.

`from_torch` and `to_torch` take and return state_dicts, `load` and `save` read
and write safetensors files. PyTorch need not be installed.
"""

from lstm_jax.interop.torch.files import load as load
from lstm_jax.interop.torch.files import save as save
from lstm_jax.interop.torch.weights import from_torch as from_torch
from lstm_jax.interop.torch.weights import to_torch as to_torch
