"""PyTorch's recurrent layers with our weights."""

from typing import Any

import numpy as np


def torch_device() -> str:
  """Return the device of PyTorch's layers."""
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


def to_torch(array: Any) -> Any:
  """Return an array as a tensor on that device."""
  import torch

  return torch.tensor(np.array(array), device=torch_device())


def torch_layer(cell: str, weights: tuple) -> Any:
  """Return nn.LSTM, nn.GRU or nn.RNN with our weights, one entry a layer."""
  import torch

  layer_class = {
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
    "rnn": torch.nn.RNN,
  }[cell]
  size, hidden = weights[0].w_x.shape[0], weights[0].w_h.shape[0]
  layer = layer_class(size, hidden, len(weights)).to(torch_device())
  with torch.no_grad():
    for k, w in enumerate(weights):
      recurrent_b = np.zeros_like(np.asarray(w.b))
      if cell == "gru":
        recurrent_b[-hidden:] = w.b_n
      for name, value in (
        (f"weight_ih_l{k}", np.asarray(w.w_x).T),
        (f"weight_hh_l{k}", np.asarray(w.w_h).T),
        (f"bias_ih_l{k}", np.asarray(w.b)),
        (f"bias_hh_l{k}", recurrent_b),
      ):
        getattr(layer, name).copy_(torch.tensor(value.copy()))
  return layer
