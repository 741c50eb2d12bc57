"""Weights to and from PyTorch's nn.LSTM, nn.GRU and nn.RNN.

PyTorch stores the transposed weights of each layer, with the gates in the same
order:

  weight_ih_l0 [G·H, D]   w_xᵀ      bias_ih_l0 [G·H]   two biases, which PyTorch
  weight_hh_l0 [G·H, H]   w_hᵀ      bias_hh_l0 [G·H]   adds
  weight_hr_l0 [P, H]     w_rᵀ, with proj_size=P; weight_hh_l0 is then [4H, P]

for G gates, D inputs and H hidden units, and the same with the suffix
`_reverse` for the backward direction. `from_torch` adds the two biases, except
in the candidate of a GRU, where bias_hh is b_n, to be multiplied by the reset
gate. `to_torch` writes b as bias_ih, and 0 or b_n as bias_hh. The biases of a
module with bias=False are 0. An nn.RNN with nonlinearity="relu" is
`rnn.with_activation(RELU)`; a state_dict is the same for both nonlinearities.

PyTorch need not be installed: a state_dict is a mapping from names to arrays.

  >>> import jax
  >>> from lstm_jax.cells import lstm
  >>> layers = (lstm.init(jax.random.key(0), 3, 5),)
  >>> sorted(to_torch(layers))
  ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
  >>> cell, same = from_torch(to_torch(layers))
  >>> cell.__name__, same[0].w_h.shape
  ('lstm_jax.cells.lstm', (5, 20))
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import (
  RELU,
  TANH,
  Activation,
  gru,
  gru_reset_before,
  lstm,
  projected_lstm,
  rnn,
)
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.interop.tensors import (
  CELL_OF_PARAMS,
  Array,
  check_fit,
  check_no_bias,
  read_source,
)
from lstm_jax.sequence.bidirectional import Directions
from lstm_jax.sequence.stack import check_layers

Layers = tuple[Params, ...]  # a result; `Directions` if bidirectional
Stack = Sequence[Params | Directions[Any]]  # an argument
CELLS: dict[int, Cell] = {4: lstm, 3: gru, 1: rnn}  # by number of gates
PARAMS: dict[Cell, type] = {
  cell: params
  for params, cell in CELL_OF_PARAMS.items()
  if cell is not gru_reset_before  # which PyTorch lacks
}
NONLINEARITIES = {"tanh": TANH, "relu": RELU}


def from_torch(
  source: Any, *, prefix: str = "", nonlinearity: str | None = None
) -> tuple[Cell[Any, Any], Layers]:
  """Return the cell of a PyTorch module, and the params of its layers.

  Args:
    source: an nn.LSTM (with or without projections), nn.GRU or nn.RNN of any
      depth, with or without biases, in one or both directions; or its
      state_dict, whose values are tensors or arrays; or a larger module or
      state_dict that contains it. A module's dropout and batch_first are not
      read: `unroll_stack` has options for both.
    prefix: how the names of its tensors begin in a larger module, with the dot,
      such as "encoder.rnn.".
    nonlinearity: "tanh" or "relu", for the state_dict of an nn.RNN, which does
      not say which it is. A module says it itself. None for an nn.LSTM or
      nn.GRU.

  Returns:
    (cell, layers): the cell, and one element per layer for `unroll_stack`,
    either params or `Directions` of params. Without `jax_enable_x64`, float64
    becomes float32.

  Raises:
    ValueError: the prefix is that of no layer; a tensor is missing, has a shape
      that does not fit the others, has a name that no such module has, or has
      no float values; the nonlinearity of an nn.RNN is neither tanh nor relu,
      is not known, or is not that of the module; or a nonlinearity is given for
      an nn.LSTM or nn.GRU.

  Do not pass gradients: PyTorch's two biases have equal gradients, which are
  also the gradient of our b, but the sum of both would be returned.
  """
  arrays, own_nonlinearity = read_source(source, prefix)
  if "weight_hh_l0" not in arrays:
    raise ValueError(
      "a state_dict of nn.LSTM, nn.GRU or nn.RNN must have weight_hh_l0 "
      f"[G·H, H], got {', '.join(sorted(arrays)) or 'nothing'}"
    )
  shape = list(arrays["weight_hh_l0"].shape)
  if len(shape) != 2:
    raise ValueError(f"weight_hh_l0 must be [G·H, H], got {shape}")
  rows, hidden = shape
  if "weight_hr_l0" in arrays:
    cell: Cell = projected_lstm
    hidden, rest = divmod(rows, 4)
    if rest:
      raise ValueError(
        f"weight_hh_l0 must be [4H, P] beside weight_hr_l0, got {shape}"
      )
  elif hidden and rows in [gates * hidden for gates in CELLS]:
    cell = CELLS[rows // hidden]
  else:
    raise ValueError(
      f"weight_hh_l0 must be [4H, H], [3H, H] or [H, H], got {shape}"
    )
  activation = TANH
  if cell is rnn:
    activation = _activation(own_nonlinearity, nonlinearity)
  elif nonlinearity is not None:
    raise ValueError(
      "nonlinearity must be None for an nn.LSTM or nn.GRU, "
      f"got {nonlinearity!r}"
    )
  bias = any(name.startswith("bias_") for name in arrays)
  layers: list[Params] = []
  matrices = "weight_ih", "weight_hh"  # both of 9 characters
  suffixes = {name[9:] for name in arrays if name.startswith(matrices)}
  while (layer := f"_l{len(layers)}") in suffixes:
    forward = _pop_params(arrays, layer, cell, rows, hidden, bias)
    if (suffix := f"{layer}_reverse") in suffixes:
      backward = _pop_params(arrays, suffix, cell, rows, hidden, bias)
      layers.append(Directions(forward, backward))
    else:
      layers.append(forward)
  if arrays:
    names = ", ".join(sorted(arrays))
    raise ValueError(f"not tensors of an nn.LSTM, nn.GRU or nn.RNN: {names}")
  check_one_module(layers)
  if cell is rnn:
    cell = rnn.with_activation(activation)
  return cell, tuple(layers)


def to_torch(layers: Stack, *, bias: bool = True) -> dict[str, np.ndarray]:
  """Return the state_dict of the PyTorch module, in the dtypes of the params.

  Args:
    layers: params of `lstm`, `projected_lstm`, `gru`, `rnn` or
      `rnn.with_activation(RELU)`, or `Directions` of them, or gradients of
      either; the lowest layer first. b is written to bias_ih, b_n of a `gru`
      to bias_hh. PyTorch's gradient of bias_hh is that of b where ours is 0.
    bias: False for a module that is made with bias=False.

  Raises:
    ValueError: layers are empty or not a list or tuple; the params are of a
      cell that PyTorch does not have, do not fit each other, or are of layers
      that cannot be in one module; or bias is False, and a bias is not 0.
  """
  check_one_module(layers)
  arrays = {name: np.array(x) for name, x in named_arrays(layers).items()}
  if bias:
    return arrays
  for name, x in arrays.items():
    if name.startswith("bias"):
      check_no_bias(name, x)
  return {k: x for k, x in arrays.items() if not k.startswith("bias")}


def named_arrays(layers: Stack) -> dict[str, jax.Array]:
  """Return the arrays of `to_torch`, which JAX may trace."""
  result: dict[str, jax.Array] = {}
  for k, layer in enumerate(layers):
    if isinstance(layer, Directions):
      result |= _tensors(f"_l{k}", layer.forward)
      result |= _tensors(f"_l{k}_reverse", layer.backward)
    else:
      result |= _tensors(f"_l{k}", layer)
  return result


def _activation(own: str | None, given: str | None) -> Activation:
  """Return the activation of an nn.RNN.

  Args:
    own: the nonlinearity that the module declares, or None.
    given: the one that the caller passes, or None.
  """
  if own is None and given is None:
    raise ValueError(
      "the state_dict of an nn.RNN does not say its nonlinearity: pass the "
      "module, or nonlinearity='tanh' or 'relu'"
    )
  if None not in (own, given) and own != given:
    raise ValueError(f"nonlinearity must be {own}, the module's, got {given}")
  nonlinearity = own or given
  if nonlinearity not in (*NONLINEARITIES,):  # may be unhashable
    raise ValueError(f"nonlinearity must be tanh or relu, got {nonlinearity!r}")
  return NONLINEARITIES[nonlinearity]


def _pop_params(
  arrays: dict[str, Array],
  suffix: str,
  cell: Cell,
  rows: int,
  hidden: int,
  bias: bool,
) -> Params:
  """Remove the tensors of one layer and direction, and return its params.

  Args:
    arrays: the state_dict, from which the tensors are removed.
    suffix: of the tensors' names, such as "_l0_reverse".
    cell: the layer's cell.
    rows: G·H, the rows of weight_ih and weight_hh.
    hidden: H.
    bias: whether the module has biases; all of its layers do, or none.
  """
  own = [name for name in arrays if suffix in name]  # for an error

  def pop(name: str, *shape: int | str) -> Array:
    x = arrays.pop(f"{name}{suffix}", None)
    if x is None:
      raise ValueError(f"{name}{suffix} is missing, got {own}")
    return check_shape(f"{name}{suffix}", x, *shape)

  w_r = pop("weight_hr", "any", hidden).T if cell is projected_lstm else None
  size = hidden if w_r is None else w_r.shape[1]
  w_x, w_h = pop("weight_ih", rows, "any").T, pop("weight_hh", rows, size).T
  if bias:
    b, b_h = pop("bias_ih", rows), pop("bias_hh", rows)
  else:
    b = b_h = np.zeros(rows, w_x.dtype)
  more = () if w_r is None else (w_r,)
  if cell is gru:  # the candidate keeps both biases
    more = (b_h[2 * hidden :],)
    b_h = jnp.concatenate([b_h[: 2 * hidden], jnp.zeros_like(more[0])])
  return PARAMS[cell](*map(jnp.array, (w_x, w_h, b + b_h, *more)))  # copies


def _tensors(suffix: str, params: Params) -> dict[str, jax.Array]:
  """Return the tensors of one layer and direction, by PyTorch's names."""
  numpy: Any = jnp if isinstance(params.b, jax.Array) else np  # keeps float64
  b_h = numpy.zeros_like(params.b)
  if isinstance(params, gru.GRUParams):
    b_h = numpy.concatenate([b_h[: -len(params.b_n)], params.b_n])
  tensors = {
    f"weight_ih{suffix}": params.w_x.T,
    f"weight_hh{suffix}": params.w_h.T,
    f"bias_ih{suffix}": params.b,
    f"bias_hh{suffix}": b_h,
  }
  if isinstance(params, projected_lstm.ProjectedLSTMParams):
    tensors[f"weight_hr{suffix}"] = params.w_r.T
  return tensors


def check_one_module(layers: Stack) -> None:
  """Raise ValueError unless the layers are those of one module of PyTorch.

  All must have the same kind of params, shape of w_h and number of directions,
  and each must read the outputs of the layer below.
  """
  check_layers(layers)
  if not layers:
    raise ValueError("a module must have at least one layer, got none")
  inputs = first = None
  for k, layer in enumerate(layers):
    both = layer if isinstance(layer, Directions) else (layer,)
    for params, suffix in zip(both, ("", "_reverse"), strict=False):
      if type(params) not in PARAMS.values():
        raise ValueError(f"PyTorch has no cell with {type(params).__name__}")
      check_fit(params)
      kind = type(params).__name__, len(both), params.w_h.shape
      first = first or kind
      if kind != first:
        raise ValueError(
          f"layer {k}{suffix} must be like the first layer, "
          f"{_described(*first)}, got {_described(*kind)}"
        )
      size = params.w_x.shape[0]
      inputs = size if inputs is None else inputs
      if size != inputs:
        raise ValueError(
          f"weight_ih_l{k}{suffix} must have {inputs} inputs, got {size}"
        )
    inputs = sum(params.w_h.shape[0] for params in both)


def _described(name: str, directions: int, shape: tuple[int, ...]) -> str:
  ways = "both directions" if directions > 1 else "one direction"
  return f"{name} with w_h {list(shape)} in {ways}"
