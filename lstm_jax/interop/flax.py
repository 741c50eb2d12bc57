"""Flax's recurrent cells: their weights here, and their RNN on `unroll`.

  from flax.linen import OptimizedLSTMCell        from flax.linen import RNN
  model = RNN(OptimizedLSTMCell(128))      →      from lstm_jax.interop.flax
                                                    import LinenRNN as RNN

and the same with `NNXRNN` for flax.nnx. The cells stay Flax's own, and so do
the names, shapes and initial values of their weights, so that checkpoints fit;
only the loop over time is this project's, with its explicit gradient. Cells:
LSTMCell, OptimizedLSTMCell, GRUCell, SimpleCell, with sigmoid gates and tanh.

Two things differ, both where `seq_lengths` is given: padded outputs are 0 here,
where Flax goes on computing with the padding; and the last carry of a row of
length 0 is its first, where Flax takes that after all the padding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.linen.recurrent import flip_sequences

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.sequence._unroll import unroll

KINDS: dict[type, Cell] = {
  lstm.LSTMParams: lstm,
  gru.GRUParams: gru,
  rnn.RNNParams: rnn,
}


def from_linen(variables: Any) -> tuple[Cell, Params]:
  """Return the cell and the params that a linen cell's weights are.

  Args:
    variables: the tree under "params" of an LSTMCell, OptimizedLSTMCell,
      GRUCell or SimpleCell.

  Raises:
    ValueError: it is the tree of something else.
  """
  names = set(variables)

  def joined(part: str, letters: str, leaf: str) -> jax.Array:
    found = [variables[part + letter][leaf] for letter in letters]
    return jnp.concatenate(found, axis=-1)

  if names == {part + letter for part in "ih" for letter in "ifgo"}:
    w_x, w_h = (joined(part, "ifgo", "kernel") for part in "ih")
    return lstm, lstm.LSTMParams(w_x, w_h, joined("h", "ifgo", "bias"))
  if names == {part + letter for part in "ih" for letter in "rzn"}:
    w_x, w_h = (joined(part, "rzn", "kernel") for part in "ih")
    b, b_n = joined("i", "rzn", "bias"), variables["hn"]["bias"]
    return gru, gru.GRUParams(w_x, w_h, b, b_n)
  if names == {"i", "h"}:
    i, h = variables["i"], variables["h"]
    return rnn, rnn.RNNParams(i["kernel"], h["kernel"], i["bias"])
  raise ValueError(
    "expected the weights of an LSTMCell, OptimizedLSTMCell, GRUCell or "
    f"SimpleCell, got {', '.join(sorted(names)) or 'nothing'}"
  )


def to_linen(params: Params) -> dict[str, Any]:
  """Return the tree under "params" of the linen cell with these weights."""

  def gates(letters: str, biased: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part, w in (("i", params.w_x), ("h", params.w_h)):
      for letter, kernel in zip(
        letters, jnp.split(w, len(letters), axis=-1), strict=True
      ):
        result[part + letter] = {"kernel": kernel}
    for letter, b in zip(
      letters, jnp.split(params.b, len(letters)), strict=True
    ):
      result[biased + letter]["bias"] = b
    return result

  if isinstance(params, lstm.LSTMParams):
    return gates("ifgo", "h")
  if isinstance(params, gru.GRUParams):
    result = gates("rzn", "i")
    result["hn"]["bias"] = params.b_n
    return result
  if isinstance(params, rnn.RNNParams):
    i = {"kernel": params.w_x, "bias": params.b}
    return {"i": i, "h": {"kernel": params.w_h}}
  raise ValueError(
    "expected the params of lstm, gru or rnn, got " + type(params).__name__
  )


def from_nnx(cell: Any) -> tuple[Cell, Params]:
  """Return the cell and the params that an nnx cell's weights are.

  Raises:
    ValueError: it is another cell than the four.
  """
  kind, variables = _variables(cell)
  w_x, w_h, b = (
    jnp.concatenate([part[...] for part in parts], axis=-1)
    for parts in variables
  )
  if kind is lstm:
    return kind, lstm.LSTMParams(w_x, w_h, b)
  if kind is rnn:
    return kind, rnn.RNNParams(w_x, w_h, b)
  b_n = jnp.zeros(w_h.shape[:1], b.dtype)  # this cell has none
  return kind, gru.GRUParams(w_x, w_h, b, b_n)


def to_nnx(params: Params, cell: Any) -> None:
  """Write params into the weights of an nnx cell, which has to be there.

  Raises:
    ValueError: the cell is none of the four, or of another kind or size; or a
      GRU's b_n is not 0: nnx.GRUCell has no such bias.
  """
  kind, variables = _variables(cell)
  name = type(cell).__name__
  if type(params) not in KINDS:
    expected = "the params of lstm, gru or rnn"
    raise ValueError(f"expected {expected}, got {type(params).__name__}")
  if KINDS[type(params)] is not kind:
    raise ValueError(f"{name} cannot hold {type(params).__name__}")
  if kind is gru and params.b_n.any():
    raise ValueError("nnx.GRUCell has no bias b_n, which must be 0")
  for field, parts in zip(("w_x", "w_h", "b"), variables, strict=True):
    leaf = getattr(params, field)
    for part, value in zip(
      parts, jnp.split(leaf, len(parts), axis=-1), strict=True
    ):
      if part[...].shape != value.shape:
        shapes = f"{part[...].shape}, got {value.shape}"
        raise ValueError(f"{field} of this {name} must be {shapes}")
      part[...] = value.astype(part[...].dtype)


def _variables(cell: Any) -> tuple[Cell, tuple[list, list, list]]:
  """Return the variables of w_x, w_h and b, a list each, of an nnx cell."""
  if isinstance(cell, nnx.LSTMCell):
    inputs = cell.ii, cell.if_, cell.ig, cell.io
    hidden = cell.hi, cell.hf, cell.hg, cell.ho
    return lstm, (
      [linear.kernel for linear in inputs],
      [linear.kernel for linear in hidden],
      [linear.bias for linear in hidden],
    )
  for kind, of, biased in (
    (lstm, nnx.OptimizedLSTMCell, "dense_h"),
    (gru, nnx.GRUCell, "dense_i"),
    (rnn, nnx.SimpleCell, "dense_i"),
  ):
    if isinstance(cell, of):
      i, h, b = cell.dense_i.kernel, cell.dense_h.kernel, getattr(cell, biased)
      return kind, ([i], [h], [b.bias])
  raise ValueError(
    "expected an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, "
    f"got {type(cell).__name__}"
  )


class LinenRNN(linen.RNN):
  """`flax.linen.RNN` of the same arguments, on `unroll`."""

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
    """Return the outputs, or (last carry, outputs), as `flax.linen.RNN`."""
    _check_plain(self.cell)
    batch_first = not _given(time_major, self.time_major)
    xs = jnp.moveaxis(inputs, -2, 0) if batch_first else inputs
    carry = initial_carry
    if carry is None:
      key = jax.random.key(0) if init_key is None else init_key
      carry = self.cell.initialize_carry(key, xs.shape[1:])
    if self.is_initializing():
      self.cell(carry, xs[0])  # makes its weights
    cell, params = from_linen(self.cell.variables["params"])
    options = return_carry, time_major, reverse, keep_order
    return _run(self, cell, params, carry, xs, seq_lengths, *options)


class NNXRNN(nnx.RNN):
  """`flax.nnx.RNN` of the same arguments, on `unroll`."""

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
    """Return the outputs, or (last carry, outputs), as `flax.nnx.RNN`."""
    _check_plain(self.cell)
    batch_first = not _given(time_major, self.time_major)
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
  """Return what Flax's module does, of inputs [T, ..., D]."""
  reverse = _given(reverse, module.reverse)
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
  if reverse and not _given(keep_order, module.keep_order):
    hs = flip_sequences(
      hs, lengths, num_batch_dims=hs.ndim - 2, time_major=True
    )
  if not _given(time_major, module.time_major):
    hs = jnp.moveaxis(hs, 0, -2)
  last_carry = tuple(last[::-1]) if cell is lstm else last.h
  return (last_carry, hs) if _given(return_carry, module.return_carry) else hs


def _state(cell: Cell, h: jax.Array) -> State:
  return gru.GRUState(h) if cell is gru else rnn.RNNState(h)


def _check_plain(cell: Any) -> None:
  """Raise ValueError if a cell's equations are not those of ours."""
  gate = getattr(cell, "gate_fn", linen.sigmoid)
  activation = getattr(cell, "activation_fn", linen.tanh)
  names = {f.__name__ for f in (gate, activation)}
  if names - {"sigmoid", "tanh"} or getattr(cell, "residual", False):
    raise ValueError(
      "the cell must have sigmoid gates, tanh and no residual, "
      f"got {', '.join(sorted(names))}, residual="
      f"{getattr(cell, 'residual', False)}"
    )


def _given(value: bool | None, default: bool) -> bool:
  return default if value is None else value
