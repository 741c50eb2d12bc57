"""The linear layers of Flax's nnx cells, in the order of our gates."""

from typing import Any, NamedTuple

from flax import nnx

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell


class NNXLayers(NamedTuple):
  """The linear layers of an nnx cell, in the order of our gates."""

  inputs: list[nnx.Linear]  # their kernels, concatenated, are w_x
  hidden: list[nnx.Linear]  # w_h
  biased: list[nnx.Linear]  # the ones of both that have a bias; b


def nnx_layers(module: Any) -> tuple[Cell, NNXLayers]:
  """Return our cell for an nnx cell, and the nnx cell's layers.

  Raises:
    ValueError: it is another module.
  """
  if isinstance(module, nnx.LSTMCell):
    inputs = [module.ii, module.if_, module.ig, module.io]
    hidden = [module.hi, module.hf, module.hg, module.ho]
    return lstm, NNXLayers(inputs, hidden, biased=hidden)
  for cell, module_type, biased in (
    (lstm, nnx.OptimizedLSTMCell, "dense_h"),
    (gru, nnx.GRUCell, "dense_i"),
    (rnn, nnx.SimpleCell, "dense_i"),
  ):
    if isinstance(module, module_type):
      layers = [module.dense_i], [module.dense_h], [getattr(module, biased)]
      return cell, NNXLayers(*layers)
  raise ValueError(
    "expected an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, "
    f"got {type(module).__name__}"
  )
