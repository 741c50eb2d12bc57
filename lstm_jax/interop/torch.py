"""Weights to and from PyTorch's nn.LSTM, nn.GRU and nn.RNN (with tanh).

PyTorch keeps Wᵀ, layer after layer, in the same order of gates:

  weight_ih_l0 [G·H, D]   w_x       bias_ih_l0 [G·H]   one of two biases that
  weight_hh_l0 [G·H, H]   w_h       bias_hh_l0 [G·H]   are added
  weight_hr_l0 [P, H]     w_r of an nn.LSTM with proj_size; weight_hh is [4H, P]

and the same with `_reverse` for the other direction. The two biases become one
where only their sum matters, which is everywhere but in a GRU's candidate. On
the way back the sum is the first and 0 the second.

PyTorch itself is not needed: a state_dict is a mapping of names to arrays, and
safetensors files are read and written by the package `safetensors` (the extra
`interop`). Nothing is unpickled.

  >>> import jax
  >>> from lstm_jax.cells import lstm
  >>> layers = (lstm.init(jax.random.key(0), 3, 5),)
  >>> sorted(to_torch(layers))
  ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
  >>> cell, same = from_torch(to_torch(layers))
  >>> cell.__name__, same[0].w_h.shape
  ('lstm_jax.cells.lstm', (5, 20))
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import gru, lstm, projected_lstm, rnn
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.sequence.bidirectional import Directions

Layers = tuple[Params | Directions, ...]  # the lowest first
CELLS: dict[int, Cell] = {4: lstm, 3: gru, 1: rnn}  # by the number of gates
KINDS: dict[Cell, Callable[..., Params]] = {
  lstm: lstm.LSTMParams,
  projected_lstm: projected_lstm.ProjectedLSTMParams,
  rnn: rnn.RNNParams,
}


def from_torch(state_dict: Mapping[str, Any]) -> tuple[Cell, Layers]:
  """Return the cell and the layers that a module's state_dict holds.

  Args:
    state_dict: of an nn.LSTM (with projections or without), nn.GRU or nn.RNN
      of any depth, with or without biases, in one or both directions; tensors
      or arrays. An nn.RNN with a relu has the same names and shapes, but is not
      the same network.

  Returns:
    (cell, layers): the cell's module, and one element a layer for
    `unroll_stack`: its params, or `Directions` of both.

  Raises:
    ValueError: a tensor is missing, or has another shape than its neighbours
      imply, or has a name that no such module has.
  """
  arrays = {name: _array(name, x) for name, x in state_dict.items()}
  if "weight_hh_l0" not in arrays or arrays["weight_hh_l0"].ndim != 2:
    raise ValueError(
      "a state_dict of nn.LSTM, nn.GRU or nn.RNN must have weight_hh_l0 "
      f"[G·H, H], got {', '.join(sorted(arrays)) or 'nothing'}"
    )
  rows, hidden = arrays["weight_hh_l0"].shape
  if "weight_hr_l0" in arrays:
    cell: Cell = projected_lstm
    hidden = rows // 4
  elif hidden and rows in [gates * hidden for gates in CELLS]:
    cell = CELLS[rows // hidden]
  else:
    raise ValueError(
      "weight_hh_l0 must be [4H, H], [3H, H] or [H, H], "
      f"got {list(arrays['weight_hh_l0'].shape)}"
    )
  layers: list[Params | Directions] = []
  while f"weight_ih_l{len(layers)}" in arrays:
    layer = f"_l{len(layers)}"
    forward = _take(arrays, layer, cell, rows, hidden)
    if f"weight_ih{layer}_reverse" in arrays:
      both = forward, _take(arrays, f"{layer}_reverse", cell, rows, hidden)
      layers.append(Directions(*both))
    else:
      layers.append(forward)
  if arrays or not layers:
    what = ", ".join(sorted(arrays)) or "no weight_ih_l0"
    raise ValueError(f"these are not tensors of such a module: {what}")
  _check_sizes(layers)
  return cell, tuple(layers)


def to_torch(layers: Layers) -> dict[str, np.ndarray]:
  """Return the state_dict of the PyTorch module with these layers' weights.

  Args:
    layers: params of `lstm`, `projected_lstm`, `gru` or `rnn`, or `Directions`
      of them, or their gradients; the lowest first.

  Raises:
    ValueError: PyTorch has no such cell.
  """
  result: dict[str, np.ndarray] = {}
  for k, layer in enumerate(layers):
    if isinstance(layer, Directions):
      result |= _give(f"_l{k}", layer.forward)
      result |= _give(f"_l{k}_reverse", layer.backward)
    else:
      result |= _give(f"_l{k}", layer)
  return result


def load(path: str | os.PathLike) -> tuple[Cell, Layers]:
  """Return `from_torch` of a safetensors file.

  Raises:
    ValueError: the file is not a safetensors file, or not of such a module.
    OSError: the file cannot be read.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    arrays = load_file(path)
  except SafetensorError as error:
    raise ValueError(f"{path} is not a safetensors file: {error}") from None
  return from_torch(arrays)


def save(path: str | os.PathLike, layers: Layers) -> None:
  """Write `to_torch(layers)` as a safetensors file, which PyTorch can read."""
  from safetensors.numpy import save_file

  arrays = {k: np.ascontiguousarray(v) for k, v in to_torch(layers).items()}
  save_file(arrays, path)


def _array(name: str, x: Any) -> np.ndarray:
  """Return a tensor or an array as NumPy's."""
  if hasattr(x, "detach"):
    x = x.detach().cpu()
  try:
    x = np.asarray(x)
  except TypeError as error:  # PyTorch's bfloat16 has no NumPy dtype
    raise ValueError(f"{name} cannot be read as an array: {error}") from None
  if not np.issubdtype(x.dtype, np.floating):
    raise ValueError(f"{name} must hold floats, got {x.dtype}")
  return x


def _take(
  arrays: dict[str, np.ndarray], layer: str, cell: Cell, rows: int, hidden: int
) -> Params:
  """Remove the tensors of one layer and direction, and return its params."""

  def take(name: str, *shape: int | None) -> np.ndarray:
    x = arrays.pop(f"{name}{layer}", None)
    if x is None:
      raise ValueError(f"{name}{layer} is missing")
    if len(x.shape) != len(shape) or any(
      n not in (None, m) for n, m in zip(shape, x.shape, strict=True)
    ):
      expected = ["any" if n is None else n for n in shape]
      raise ValueError(f"{name}{layer} must be {expected}, got {x.shape}")
    return x

  projected = cell is projected_lstm
  w_r = take("weight_hr", None, hidden).T if projected else None
  size = hidden if w_r is None else w_r.shape[1]
  w_x, w_h = take("weight_ih", rows, None).T, take("weight_hh", rows, size).T
  if f"bias_ih{layer}" in arrays:
    b, b_h = take("bias_ih", rows), take("bias_hh", rows)
  else:
    b = b_h = np.zeros(rows, w_x.dtype)
  if cell is gru:
    inside = b_h[2 * hidden :]
    outside = np.concatenate([b_h[: 2 * hidden], np.zeros_like(inside)])
    return gru.GRUParams(*map(jnp.asarray, (w_x, w_h, b + outside, inside)))
  own = w_x, w_h, b + b_h, *(() if w_r is None else (w_r,))
  return KINDS[cell](*map(jnp.asarray, own))


def _give(layer: str, params: Params) -> dict[str, np.ndarray]:
  """Return the tensors of one layer and direction."""
  if type(params) not in (gru.GRUParams, *KINDS.values()):
    raise ValueError(f"PyTorch has no cell with {type(params).__name__}")
  b = np.array(params.b)
  other = np.zeros_like(b)
  if isinstance(params, gru.GRUParams):
    other[-len(params.b_n) :] = params.b_n
  tensors = {
    f"weight_ih{layer}": np.array(params.w_x).T,
    f"weight_hh{layer}": np.array(params.w_h).T,
    f"bias_ih{layer}": b,
    f"bias_hh{layer}": other,
  }
  if isinstance(params, projected_lstm.ProjectedLSTMParams):
    tensors[f"weight_hr{layer}"] = np.array(params.w_r).T
  return tensors


def _check_sizes(layers: list[Params | Directions]) -> None:
  """Raise ValueError unless each layer takes what the one below puts out."""
  size = None
  for k, layer in enumerate(layers):
    both = layer if isinstance(layer, Directions) else (layer,)
    for params in both:
      found = params.w_x.shape[0]
      if size is not None and found != size:
        raise ValueError(f"weight_ih_l{k} must take {size} inputs, got {found}")
    size = sum(params.w_h.shape[0] for params in both)
