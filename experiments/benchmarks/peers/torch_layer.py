"""PyTorch's recurrent layers with our weights."""

from typing import Any

import numpy as np

from lstm_jax.interop import torch as interop


def torch_device() -> str:
  """Return the device of PyTorch's layers."""
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


def as_tensor(array: Any) -> Any:
  """Return an array as a tensor on `torch_device()`."""
  import torch

  return torch.tensor(np.array(array), device=torch_device())


def torch_layer(cell: str, weights: tuple) -> Any:
  """Return PyTorch's float32 module with our weights, on `torch_device()`.

  Args:
    cell: lstm, gru or rnn.
    weights: our parameters of each of its layers, the lowest first.
  """
  import torch

  layer_class = {
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
    "rnn": torch.nn.RNN,
  }[cell]
  input_size, hidden_size = weights[0].w_x.shape[0], weights[0].w_h.shape[0]
  layer = layer_class(input_size, hidden_size, len(weights)).to(torch_device())
  arrays = interop.to_torch(weights)
  layer.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()})
  return layer
