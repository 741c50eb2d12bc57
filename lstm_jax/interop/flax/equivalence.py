"""Decide whether `unroll` computes the same as a call of Flax's RNN.

Flax's cell must have one of the types in CELL_OF_TYPE. A subclass is not
accepted, since it may compute something else. Each option of the cell, of its
layers and of the RNN must either be one that `LinenRNN` and `NNXRNN` honour
(HONOURED), or have Flax's default. So gates are sigmoids, the other activations
are tanh, and there is no residual connection. If a later version of Flax adds
an option, a module that sets it runs in Flax's own RNN. The weights and the
carry must have the dtype in which Flax's cell computes, float32 or float64;
with implementation="mosaic_gpu", `unroll` checks the dtypes instead.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.linen.dtypes import canonicalize_dtype

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.interop.flax.nnx_layers import nnx_layers

CELL_OF_TYPE: dict[type, Cell] = {
  linen.LSTMCell: lstm,
  linen.OptimizedLSTMCell: lstm,
  linen.GRUCell: gru,
  linen.SimpleCell: rnn,
  nnx.LSTMCell: lstm,
  nnx.OptimizedLSTMCell: lstm,
  nnx.GRUCell: gru,
  nnx.SimpleCell: rnn,
}
HONOURED = {
  *("self", "parent", "name"),  # of every module
  # Of a cell or layer: sizes (checked by `fits`), dtypes (`has_flax_dtype`),
  # biases (`_has_plain_layers`), and what makes the weights and the carry:
  # `unroll` is given the arrays that were made.
  *("features", "in_features", "hidden_features", "out_features", "use_bias"),
  *("kernel_init", "recurrent_kernel_init", "bias_init", "carry_init"),
  *("kernel_metadata", "recurrent_kernel_metadata", "bias_metadata"),
  *("dtype", "param_dtype", "keep_rngs", "rngs"),
  # Of an RNN.
  *("cell", "time_major", "return_carry", "reverse", "keep_order"),
  "state_axes",  # compared with STATE_AXES by `is_plain_scan`
}
MISSING = object()
STATE_AXES: Any = {...: nnx.Carry}  # the default of nnx.RNN


def equivalent_cell(flax_cell: Any) -> Cell | None:
  """Return our cell with the equations of Flax's cell; None if there is none.

  Args:
    flax_cell: a cell of linen or nnx, or any other module.
  """
  cell_type = type(flax_cell)
  cell = CELL_OF_TYPE.get(cell_type)
  if cell is None or not _has_defaults(flax_cell, cell_type):
    return None
  if issubclass(cell_type, nnx.Module) and not _has_plain_layers(flax_cell):
    return None
  return cell


def _has_plain_layers(flax_cell: Any) -> bool:
  """Return whether an nnx cell's layers still are as its type makes them."""
  _, (inputs, hidden, biased) = nnx_layers(flax_cell)
  return all(
    type(layer) is nnx.Linear
    and _has_defaults(layer, nnx.Linear)
    and layer.dtype == flax_cell.dtype
    and layer.use_bias == any(layer is other for other in biased)
    for layer in (*inputs, *hidden)
  )


def is_plain_scan(module: Any) -> bool:
  """Return whether an RNN does no more than scan its cell over time.

  Args:
    module: a LinenRNN or NNXRNN.
  """
  if issubclass(type(module), nnx.Module):
    state_axes = nnx.StateAxes(STATE_AXES)
    return _has_defaults(module, nnx.RNN) and module.state_axes == state_axes
  # Interceptors (`linen.intercept_methods`) must see each call of the cell.
  # Flax has no public way to ask for them; the tests fail if this private stack
  # is renamed.
  intercepted = getattr(linen.module, "_global_interceptor_stack", ())
  return _has_defaults(module, linen.RNN) and not intercepted


class Call(NamedTuple):
  """A call of a module, as `unroll` takes it."""

  cell: Cell  # ours
  params: Params
  carry: Any  # Flax's initial carry
  xs: jax.Array  # [T, ..., D], of any dtype
  lengths: Any  # of the sequences, or None
  dtype: Any  # of Flax's cell, or None


def fits(call: Call) -> bool:
  """Return whether the carry, inputs and lengths are as `unroll` needs them.

  Their structure and shapes must match exactly, although Flax would broadcast
  some of them, and the lengths must be integers.
  """
  cell, params, carry, xs, lengths, _ = call
  structure: Any = jax.tree.structure(carry)  # (c, h) of an LSTM, else h
  if structure != jax.tree.structure((0, 0) if cell is lstm else 0):
    return False
  size, hidden_size = params.w_x.shape[0], params.w_h.shape[0]
  shape = (*xs.shape[1:-1], hidden_size)
  return (
    all(jnp.shape(leaf) == shape for leaf in jax.tree.leaves(carry))
    and xs.shape[-1] == size
    and (lengths is None or _are_lengths(lengths, xs.shape[1:-1]))
  )


def _are_lengths(lengths: Any, batch_shape: tuple[int, ...]) -> bool:
  """Return whether lengths are integers of the batch's shape."""
  lengths = jnp.asarray(lengths)
  integers = jnp.issubdtype(lengths.dtype, jnp.integer)
  return integers and lengths.shape == batch_shape


def computed_dtype(call: Call) -> jnp.dtype:
  """Return the dtype that Flax's cell computes in."""
  arrays = call.xs, *jax.tree.leaves(call.carry), *call.params
  return jnp.dtype(canonicalize_dtype(*arrays, dtype=call.dtype))


def has_flax_dtype(call: Call) -> bool:
  """Return whether weights and carry have the dtype that Flax computes in.

  It must be float32 or float64. The inputs may have another dtype, and are then
  converted. Without a dtype of its own, Flax's cell computes in the dtype of
  the inputs if that is wider, and the result is False.
  """
  computed = computed_dtype(call)
  arrays = map(jnp.asarray, (*jax.tree.leaves(call.carry), *call.params))
  return computed in (jnp.float32, jnp.float64) and all(
    array.dtype == computed for array in arrays
  )


def _has_defaults(module: Any, flax_type: Any) -> bool:
  """Return whether all options except HONOURED have Flax's defaults.

  An option counts as set if the module has no attribute of its name.
  """
  parameters = inspect.signature(flax_type.__init__).parameters
  return all(
    getattr(module, name, MISSING) == parameter.default
    for name, parameter in parameters.items()
    if name not in HONOURED
  )
