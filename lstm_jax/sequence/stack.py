"""Layers on top of each other: the outputs of one are the inputs of the next.

  h⁰ₜ = xₜ,   hˡₜ = cellˡ(θˡ, sˡₜ₋₁, hˡ⁻¹ₜ)   for l = 1 … L

Every layer runs over the whole sequence before the next one, so that each can
compute its input product for all time steps at once. A layer whose weights are
`Directions` is bidirectional: its outputs are those of both directions.

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax.cells import gru, lstm
  >>> cells = gru, lstm
  >>> params = init_stack(cells, jax.random.key(0), 3, hidden_sizes=5)
  >>> states, hs = unroll_stack(cells, params, None, jnp.ones((7, 2, 3)))
  >>> type(states[0]).__name__, type(states[1]).__name__, hs.shape
  ('GRUState', 'LSTMState', (7, 2, 5))
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.checks import check_count
from lstm_jax.cells.properties import cell_name, output_size
from lstm_jax.cells.weight_checks import check_params
from lstm_jax.sequence import regularize
from lstm_jax.sequence._unroll import UnrollOptions, unroll
from lstm_jax.sequence.arguments import (
  as_inputs,
  check_cell,
  combined_mask,
  exchange_axes,
  zero_masked,
)
from lstm_jax.sequence.bidirectional import (
  Directions,
  check_options,
  unroll_both,
)

# One cell, or one per layer. Of a cell in a tuple or list, some type checkers
# know only that it is a module.
Cells = Cell[Any, Any] | Sequence[Cell[Any, Any] | ModuleType]


def unroll_stack(
  cell: Cells,
  params: Sequence[Params | Directions[Any]],
  states: Sequence[State | Directions[Any]] | None,
  xs: jax.Array,
  *,
  dropout: float = 0.0,
  locked: bool = False,
  key: jax.Array | None = None,
  skip: bool = False,
  zoneout: Sequence[Any] | None = None,
  state_dropout: Sequence[Any] | None = None,
  **options: Unpack[UnrollOptions],
) -> tuple[tuple[State, ...], jax.Array]:
  """Unroll a stack of layers, the lowest layer first.

  Args:
    cell: the cell of every layer, or a sequence of one cell per layer.
    params: the weights of each layer; sizes may differ between layers. Those
      of a bidirectional layer are `Directions`, and the next layer has D = 2H.
    states: the state of each layer before the first step; None for zero states.
    xs: inputs of the lowest layer, [T, ..., D], or tokens [T, ...].
    dropout: rate of dropout between layers, a Python float in [0, 1).
    locked: drop the same units at every time step (variational dropout).
    key: a PRNG key for dropout; needed if its rate is not 0.
    skip: add a layer's inputs, as they are before dropout, to its outputs,
      wherever the sizes are equal.
    zoneout: as in `unroll`, one element per layer (`Directions` for a
      bidirectional layer). None for a layer, or for all, means no zoneout.
    state_dropout: as in `unroll`, one element per layer, or None as above.
    **options: mask, lengths, reset, time_major, adjoint, compute_dtype and
      implementation, as in `unroll`, for every layer.

  Returns:
    (states, hs): the last state of every layer (`Directions` of a bidirectional
    one), and the top layer's outputs, [T, ..., H], or [T, ..., 2H] if it is
    bidirectional.

  Raises:
    TypeError: an option is not one of those above, or `unroll` raises it.
    ValueError: params is not a list or tuple, or is empty; cells, states,
      zoneout or state_dropout are not a list or tuple with one element per
      layer; dropout has no key, or its rate is not in [0, 1); or `unroll`
      raises it for a layer, such as a layer that is too large for
      implementation="mosaic_gpu".
  """
  check_options("unroll_stack", options)
  check_some_layers(params, "params")
  regularize.check_rate("dropout", dropout)
  if dropout and key is None:
    raise ValueError(f"dropout needs a key, got dropout={dropout}, key=None")
  time_major = options.pop("time_major", True)
  if not time_major:
    xs, options["mask"], options["reset"] = exchange_axes(
      xs, options.get("mask"), options.get("reset")
    )
  xs = as_inputs(xs)
  # Masked inputs must not be added to outputs. (`unroll` refuses xs without T.)
  if skip and xs.ndim > 1 and not is_token(xs):
    mask, lengths = options.get("mask"), options.get("lengths")
    mask = combined_mask(mask, lengths, xs.shape[:-1])
    xs = xs if mask is None else zero_masked(mask, xs)
  keys: Any = () if key is None else jax.random.split(key, len(params))
  drop = regularize.locked_dropout if locked else regularize.dropout
  layers = zip(
    _cells(cell, len(params)),
    params,
    _per_layer("states", states, len(params)),
    _per_layer("zoneout", zoneout, len(params)),
    _per_layer("state_dropout", state_dropout, len(params)),
    strict=True,
  )
  last_states: list[State] = []
  for layer_cell, weights, state, rates, factor in layers:
    inputs = xs
    if last_states and dropout:  # not the inputs of the lowest layer
      inputs = drop(keys[len(last_states)], xs, dropout)
    run: Any = unroll_both if isinstance(weights, Directions) else unroll
    state, hs = run(
      layer_cell,
      weights,
      state,
      inputs,
      zoneout=rates,
      state_dropout=factor,
      **options,
    )
    last_states.append(state)
    adds = skip and not is_token(xs) and hs.shape == xs.shape
    xs = hs + xs.astype(hs.dtype) if adds else hs
  return tuple(last_states), xs if time_major else jnp.swapaxes(xs, 0, 1)


def init_stack(
  cell: Cells,
  key: jax.Array,
  input_size: int,
  hidden_sizes: int | Sequence[int],
  *,
  num_layers: int | None = None,
  bidirectional: bool = False,
  dtype: DTypeLike = jnp.float32,
) -> tuple[Params, ...]:
  """Return the initial weights of a stack, the lowest layer first.

  Args:
    cell: the cell of every layer, or a sequence of one cell per layer.
    key: a typed PRNG key.
    input_size: D of the lowest layer.
    hidden_sizes: H of each layer, or one H for all.
    num_layers: L; needed if neither `cell` nor `hidden_sizes` is a sequence.
    bidirectional: whether every layer has both directions; the weights of each
      are then `Directions`.
    dtype: the dtype of every parameter.

  Raises:
    ValueError: there is no layer; the number of layers is not given, is not an
      integer, or differs between two arguments; cells are not a list or tuple,
      or a cell has no `init` or `initial_state`; a size is not an integer ≥ 1;
      or dtype is not a floating-point dtype.
  """
  sizes = _sizes(cell, hidden_sizes, num_layers)
  layers: list[Params] = []
  for layer_cell, layer_key, size in zip(
    _cells(cell, len(sizes)),
    jax.random.split(key, len(sizes)),
    sizes,
    strict=True,
  ):
    for function in "init", "initial_state":
      if not callable(getattr(layer_cell, function, None)):
        raise ValueError(
          f"cell must be lstm, gru or another with a function {function}, "
          f"got {cell_name(layer_cell)}"
        )
    keys = jax.random.split(layer_key) if bidirectional else layer_key[None]
    params = [layer_cell.init(k, input_size, size, dtype) for k in keys]
    layers.append(Directions(*params) if bidirectional else params[0])
    input_size = sum(output_size(layer_cell, weights) for weights in params)
  return tuple(layers)


def initial_stack_state(
  cell: Cells,
  params: Sequence[Params | Directions[Any]],
  batch_shape: tuple[int, ...] = (),
) -> tuple[State, ...]:
  """Return the zero states of a stack, the lowest layer first.

  That of a bidirectional layer is `Directions`.

  Args:
    cell: the cell of every layer, or a sequence of one cell per layer.
    params: the weights of each layer.
    batch_shape: the sizes of the batch axes.

  Raises:
    ValueError: params is not a list or tuple, or is empty; there is not one
      cell per layer; a cell is not one that `unroll` takes; params are of
      another cell; or batch_shape is not iterable.
  """
  check_some_layers(params, "params")

  def zero_state(layer_cell, weights):
    if isinstance(weights, Directions):
      return Directions(*(zero_state(layer_cell, w) for w in weights))
    check_cell(layer_cell)
    check_params(layer_cell.project, weights)  # of the type it annotates
    return layer_cell.initial_state(weights, batch_shape)

  return tuple(map(zero_state, _cells(cell, len(params)), params))


def check_layers(layers: Any, name: str = "layers") -> None:
  """Raise ValueError unless layers are in a list or a plain tuple.

  One layer alone is a NamedTuple, whose fields are not layers.
  """
  if not isinstance(layers, list | tuple) or hasattr(layers, "_fields"):
    kind = type(layers).__name__
    raise ValueError(
      f"{name} must be a list or tuple with one element per layer, got {kind}"
    )


def check_some_layers(layers: Any, name: str) -> None:
  """Raise ValueError unless there are layers, as `check_layers` wants them."""
  check_layers(layers, name)
  if not layers:
    raise ValueError(f"{name} must have at least one layer, got none")


def _sizes(
  cell: Cells,
  hidden_sizes: int | Sequence[int],
  num_layers: int | None,
) -> tuple[int, ...]:
  """Return H of each layer, after a check that the arguments agree on L."""
  counts: dict[str, int] = {}
  if num_layers is not None:
    counts["num_layers"] = check_count("num_layers", num_layers)
  sizes = np.asarray(hidden_sizes)
  if sizes.ndim:
    counts["hidden_sizes"] = len(sizes)
  if not _is_cell(cell):
    check_layers(cell, "cell")
    counts["cells"] = len(cell)  # type: ignore[arg-type]
  if not counts:
    raise ValueError(
      "init_stack needs num_layers, or a sequence of hidden_sizes or of cells, "
      f"got hidden_sizes={hidden_sizes}, num_layers=None"
    )
  if len(set(counts.values())) > 1:
    raise ValueError(f"the numbers of layers must be the same, got {counts}")
  (layers,) = set(counts.values())
  if layers < 1:
    raise ValueError(f"a stack needs at least one layer, got {layers}")
  if sizes.ndim > 1 or sizes.dtype.kind not in "iu":
    raise ValueError(
      f"hidden_sizes must be an integer, or one per layer, got {hidden_sizes!r}"
    )
  return tuple(map(int, np.broadcast_to(sizes, layers)))


def _cells(cell: Cells, num_layers: int) -> Sequence[Cell]:
  """Return one cell per layer."""
  if _is_cell(cell):
    return [cell] * num_layers  # type: ignore[list-item]
  check_layers(cell, "cell")  # first: `_per_layer` would accept None
  return _per_layer("cell", cell, num_layers)


def _is_cell(cell: object) -> bool:
  # A tuple may be a cell: a NamedTuple of functions.
  functions = "initial_state", "project", "recur"
  return any(hasattr(cell, function) for function in functions)


def _per_layer(name: str, values: Any, num_layers: int) -> Sequence:
  """Return one value per layer: those given, or None for each."""
  if values is None:
    return [None] * num_layers
  check_layers(values, name)
  if len(values) != num_layers:
    raise ValueError(
      f"{name} must have one element per layer, "
      f"got {len(values)} for {num_layers} layers"
    )
  return values
