"""Layers of PyTorch, and stand-ins for its classes where it is missing."""

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, projected_lstm, rnn
from lstm_jax.cells import RELU
from lstm_jax.interop import torch as interop
from lstm_jax.sequence import init_stack
from tests.draws import D, H, normal_like

CELLS = {
  "LSTM": lstm,
  "projected": projected_lstm,
  "GRU": gru,
  "RNN": rnn,
  "RNN relu": rnn.with_activation(RELU),
}
ALL_CELLS = pytest.mark.parametrize("kind", CELLS)


def nonlinearity_of(kind):
  """Return the nonlinearity of an RNN, which its state_dict does not hold.

  It is None for the other kinds.
  """
  return {"RNN": "tanh", "RNN relu": "relu"}.get(kind)


def make(torch, kind, **options):
  """Return a module of PyTorch with two layers of this kind."""
  if kind == "RNN relu":
    kind, options = "RNN", {"nonlinearity": "relu", **options}
  if kind == "projected":
    # The default size of `projected_lstm.init`.
    kind, options = "LSTM", {"proj_size": (H + 1) // 2, **options}
  return getattr(torch.nn, kind)(D, H, num_layers=2, **options)


def stack(cell, key, both, sizes=(H, H), dtype=jnp.float64):
  """Return random layers of these sizes, in both directions if `both`."""
  layers = init_stack(cell, key, D, sizes, bidirectional=both, dtype=dtype)
  return normal_like(key, layers)


class Tensor:
  """What the library uses of torch.Tensor."""

  is_meta = is_quantized = False
  detached = readable = False  # until `detach`, and then `cpu`, are called

  def __init__(self, values, dtype=None, **attributes):
    self.values = np.asarray(values)
    # A dtype unlike that of the values stands for one that NumPy lacks.
    self.dtype = dtype or f"torch.{self.values.dtype}"
    self.__dict__.update(attributes)

  def detach(self):
    return Tensor(self.values, self.dtype, detached=True)

  def cpu(self):
    return Tensor(self.values, self.dtype, readable=self.detached)

  def float(self):
    return Tensor(self.values.astype(np.float32), readable=self.readable)

  def numpy(self):
    assert self.readable
    if self.dtype != f"torch.{self.values.dtype}":
      raise TypeError(f"Got unsupported ScalarType {self.dtype}")
    return self.values


class Module:
  """What the library uses of torch.nn.Module."""

  def __init__(self, weights, **attributes):
    self.weights = weights
    self.__dict__.update(attributes)

  def state_dict(self):
    return self.weights


def tensors(layers):
  """Return the state_dict of some layers, of `Tensor` stand-ins."""
  return {name: Tensor(x) for name, x in interop.to_torch(layers).items()}
