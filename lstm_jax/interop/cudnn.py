"""Weights to and from the flat vector of `jax.experimental.rnn`, cuDNN's LSTM.

The vector holds the tensors of PyTorch's nn.LSTM: first the weights, then the
biases. Each part goes layer by layer, the lowest first, and in each layer
direction by direction, forward first: weight_ih, then weight_hh of the same
direction; bias_ih, then bias_hh of the same direction.

  >>> import jax
  >>> from lstm_jax.cells import lstm
  >>> layers = (lstm.init(jax.random.key(0), 3, 5),)
  >>> weights = to_cudnn(layers)
  >>> weights.shape  # 4·5·(3 + 5) weights and 2·4·5 biases
  (200,)
  >>> same = from_cudnn(weights, input_size=3, hidden_size=5)
  >>> bool((same[0].w_h == layers[0].w_h).all())
  True
"""

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from lstm_jax.cells.checks import check_count
from lstm_jax.cells.lstm import LSTMParams
from lstm_jax.interop.tensors import Array, as_array
from lstm_jax.interop.torch.weights import (
  Layers,
  Stack,
  check_one_module,
  from_torch,
  named_arrays,
)
from lstm_jax.sequence import Directions
from lstm_jax.sequence.stack import check_layers


def to_cudnn(layers: Stack) -> jax.Array:
  """Return the vector of cuDNN's LSTM with these weights.

  Args:
    layers: params of `lstm`, or `Directions` of them; the lowest layer first.

  Raises:
    ValueError: layers are empty, are of another cell, differ in size or
      directions, or are not a list or tuple; or the weights of a layer do not
      fit each other.
  """
  check_layers(layers)
  for layer in layers:
    for params in layer if isinstance(layer, Directions) else (layer,):
      if not isinstance(params, LSTMParams):
        kind = type(params).__name__
        raise ValueError(
          f"every layer must be the LSTMParams of lstm, got {kind}"
        )
  check_one_module(layers)
  arrays = named_arrays(layers)
  # In the order of `named_arrays`, but all weights before all biases.
  order = sorted(arrays, key=lambda name: name.startswith("bias"))
  return jnp.concatenate(
    [as_array(name, arrays[name]).ravel() for name in order]
  )


def from_cudnn(
  weights: Array,
  input_size: int,
  hidden_size: int,
  num_layers: int = 1,
  bidirectional: bool = False,
) -> Layers:
  """Return the layers of `lstm` with the weights of cuDNN's vector.

  Args:
    weights: a vector as `jax.experimental.rnn.init_lstm_weight` returns it.
    input_size: D of the lowest layer.
    hidden_size: H of every layer.
    num_layers: the number of layers.
    bidirectional: whether every layer has both directions.

  Returns:
    One element per layer for `unroll_stack`, the lowest layer first. Without
    `jax_enable_x64`, float64 becomes float32.

  Raises:
    ValueError: a size is not an integer from 1 on, the length of the vector
      does not fit the sizes, or the vector holds no floats.

  Do not pass gradients: the two biases have equal gradients, which are also the
  gradient of our b, but the sum of both would be returned.
  """
  input_size = check_count("input_size", input_size)
  hidden_size = check_count("hidden_size", hidden_size)
  num_layers = check_count("num_layers", num_layers)
  weights = jnp.asarray(as_array("weights", weights))
  sizes = input_size, hidden_size, num_layers, bidirectional
  # The result of `rnn.get_num_params_in_lstm`, which takes long if num_layers
  # is huge: it lists the shapes of all layers. Each of a layer's rows has the
  # layer's inputs (over all layers, `inputs`), H states and two biases.
  directions = 2 if bidirectional else 1
  inputs = input_size + (num_layers - 1) * directions * hidden_size
  rows = 4 * hidden_size * directions  # of each layer
  expected = rows * (inputs + num_layers * (hidden_size + 2))
  if weights.shape != (expected,):
    raise ValueError(f"weights must be [{expected}], got {weights.shape}")
  unpacked = rnn.unpack_lstm_weights(weights, *sizes)
  names = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
  state_dict = {}
  for name, arrays in zip(names, unpacked, strict=True):
    for k, array in arrays.items():
      layer, backward = divmod(k, 2) if bidirectional else (k, 0)
      state_dict[f"{name}_l{layer}{'_reverse' if backward else ''}"] = array
  return from_torch(state_dict)[1]
