"""PyTorch's recurrent layers with our weights."""

from typing import Any

import jax
import numpy as np

from experiments.benchmarks.proof import Unsupported
from lstm_jax.interop import torch as interop


def torch_device() -> str:
  """Return the device of PyTorch's layers: a CPU or GPU, as JAX has.

  Raises:
    Unsupported: JAX has a GPU, and PyTorch none.
  """
  import torch

  if jax.default_backend() == "cpu":
    return "cpu"
  if not torch.cuda.is_available():
    raise Unsupported("PyTorch finds no GPU")
  return "cuda"


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
