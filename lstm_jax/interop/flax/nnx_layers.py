"""The linear layers of which Flax's nnx cells consist."""

from typing import Any, NamedTuple

from flax import nnx

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell


class NNXLayers(NamedTuple):
  """The linear layers of an nnx cell, each list in the order of our gates.

  Attributes:
    inputs: their kernels, concatenated along the last axis, are w_x [D, G·H].
    hidden: the same for w_h [H, G·H].
    biased: the layers of both lists that have a bias. The biases, concatenated,
      are b [G·H].
  """

  inputs: list[nnx.Linear]
  hidden: list[nnx.Linear]
  biased: list[nnx.Linear]


def nnx_layers(module: Any) -> tuple[Cell, NNXLayers]:
  """Return our cell for an nnx cell, and the nnx cell's layers.

  Args:
    module: an nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, or an
      instance of a subclass.

  Raises:
    ValueError: module has another type.
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
    "expected an nnx LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, "
    f"got {type(module).__module__}.{type(module).__name__}"
  )
