"""Flax's RNN modules, with `unroll` in place of Flax's loop over time.

`LinenRNN` is used in place of flax.linen's RNN, and `NNXRNN` of flax.nnx's:

  model = LinenRNN(linen.OptimizedLSTMCell(128))  # was linen.RNN(...)
The cell is Flax's own, with the names, shapes and initial values of its
weights, so that checkpoints can be restored. Only the loop over time is
replaced by `unroll`, with its hand-derived gradient.
Supported cells are LSTMCell, OptimizedLSTMCell, GRUCell and SimpleCell, with
sigmoid gates and tanh.

There are two differences, both where `seq_lengths` is given. Padded outputs are
0 here, where Flax applies the cell to the padding. The final carry of a
sequence of length 0 is its initial carry, where Flax returns the carry after
all the padding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.linen.recurrent import flip_sequences

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.interop.flax.weights import from_linen, from_nnx
from lstm_jax.sequence._unroll import unroll


class LinenRNN(linen.RNN):
  """`flax.linen.RNN`, with the same arguments, on `unroll`."""

  @linen.compact
  def __call__(
    self,
    inputs: jax.Array,
    *,
    initial_carry: Any = None,
    init_key: jax.Array | None = None,
    seq_lengths: jax.Array | None = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
  ) -> Any:
    """Return outputs, or (final carry, outputs), as `flax.linen.RNN` does."""
    _check_supported(self.cell)
    batch_first = not _default(time_major, self.time_major)
    xs = jnp.moveaxis(inputs, -2, 0) if batch_first else inputs
    carry = initial_carry
    if carry is None:
      key = jax.random.key(0) if init_key is None else init_key
      carry = self.cell.initialize_carry(key, xs.shape[1:])
    if self.is_initializing():
      self.cell(carry, xs[0])  # creates the weights
    cell, params = from_linen(self.cell.variables["params"])
    options = return_carry, time_major, reverse, keep_order
    return _run(self, cell, params, carry, xs, seq_lengths, *options)


class NNXRNN(nnx.RNN):
  """`flax.nnx.RNN`, with the same arguments, on `unroll`."""

  def __call__(
    self,
    inputs: jax.Array,
    *,
    initial_carry: Any = None,
    seq_lengths: jax.Array | None = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
    rngs: Any = None,
  ) -> Any:
    """Return outputs, or (final carry, outputs), as `flax.nnx.RNN` does."""
    _check_supported(self.cell)
    batch_first = not _default(time_major, self.time_major)
    xs = jnp.moveaxis(inputs, -2, 0) if batch_first else inputs
    carry = initial_carry
    if carry is None:
      rngs = self.rngs if rngs is None else rngs
      carry = self.cell.initialize_carry(xs.shape[1:], rngs)
    cell, params = from_nnx(self.cell)
    options = return_carry, time_major, reverse, keep_order
    return _run(self, cell, params, carry, xs, seq_lengths, *options)


def _run(
  module: Any,
  cell: Cell,
  params: Params,
  carry: Any,
  xs: jax.Array,
  lengths: jax.Array | None,
  return_carry: bool | None,
  time_major: bool | None,
  reverse: bool | None,
  keep_order: bool | None,
) -> Any:
  """Return what Flax's module returns, given time-major inputs [T, ..., D]."""
  reverse = _default(reverse, module.reverse)
  # The carry of Flax's LSTM is (c, h); that of its other cells is h.
  state = lstm.LSTMState(*carry[::-1]) if cell is lstm else _state(cell, carry)
  last, hs = unroll(
    cell,
    params,
    state,
    xs,
    lengths=lengths,
    reverse=reverse,
    compute_dtype=getattr(module.cell, "dtype", None),
  )
  if reverse and not _default(keep_order, module.keep_order):
    hs = flip_sequences(
      hs, lengths, num_batch_dims=hs.ndim - 2, time_major=True
    )
  if not _default(time_major, module.time_major):
    hs = jnp.moveaxis(hs, 0, -2)
  last_carry = tuple(last[::-1]) if cell is lstm else last.h
  return (last_carry, hs) if _default(return_carry, module.return_carry) else hs


def _state(cell: Cell, h: jax.Array) -> State:
  return gru.GRUState(h) if cell is gru else rnn.RNNState(h)


def _check_supported(cell: Any) -> None:
  """Raise ValueError unless the cell has sigmoid gates, tanh, no residual."""
  supported = {"gate_fn": "sigmoid", "activation_fn": "tanh", "residual": False}
  for field, expected in supported.items():
    value = getattr(cell, field, expected)  # not every cell has all three
    value = getattr(value, "__name__", value)
    if value != expected:
      raise ValueError(
        "the cell must have sigmoid gates, tanh and no residual connection, "
        f"got {field}={value!r}"
      )


def _default(value: bool | None, default: bool) -> bool:
  """Return value, or default where value is None."""
  return default if value is None else value
