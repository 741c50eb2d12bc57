"""Convert Flax's weights, and run Flax's cells with `unroll`.

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
from lstm_jax.sequence._unroll import unroll

CELL_OF_PARAMS: dict[type, Cell] = {
  lstm.LSTMParams: lstm,
  gru.GRUParams: gru,
  rnn.RNNParams: rnn,
}


def from_linen(variables: Any) -> tuple[Cell, Params]:
  """Return our cell and the params equal to a linen cell's weights.

  Args:
    variables: the "params" collection of an LSTMCell, OptimizedLSTMCell,
      GRUCell or SimpleCell.

  Raises:
    ValueError: the collection is of another module.
  """
  names = set(variables)

  def concatenated(part: str, gates: str, leaf: str) -> jax.Array:
    arrays = [variables[part + gate][leaf] for gate in gates]
    return jnp.concatenate(arrays, axis=-1)

  if names == {part + gate for part in "ih" for gate in "ifgo"}:
    w_x, w_h = (concatenated(part, "ifgo", "kernel") for part in "ih")
    return lstm, lstm.LSTMParams(w_x, w_h, concatenated("h", "ifgo", "bias"))
  if names == {part + gate for part in "ih" for gate in "rzn"}:
    w_x, w_h = (concatenated(part, "rzn", "kernel") for part in "ih")
    b, b_n = concatenated("i", "rzn", "bias"), variables["hn"]["bias"]
    return gru, gru.GRUParams(w_x, w_h, b, b_n)
  if names == {"i", "h"}:
    i, h = variables["i"], variables["h"]
    return rnn, rnn.RNNParams(i["kernel"], h["kernel"], i["bias"])
  raise ValueError(
    "expected the weights of an LSTMCell, OptimizedLSTMCell, GRUCell or "
    f"SimpleCell, got {', '.join(sorted(names)) or 'nothing'}"
  )


def to_linen(params: Params) -> dict[str, Any]:
  """Convert params to the "params" collection of the matching linen cell.

  Args:
    params: of `lstm`, `gru` or `rnn`.

  Raises:
    ValueError: they are of another cell.
  """

  def split_gates(gates: str, bias_part: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part, w in (("i", params.w_x), ("h", params.w_h)):
      kernels = jnp.split(w, len(gates), axis=-1)
      for gate, kernel in zip(gates, kernels, strict=True):
        result[part + gate] = {"kernel": kernel}
    biases = jnp.split(params.b, len(gates))
    for gate, b in zip(gates, biases, strict=True):
      result[bias_part + gate]["bias"] = b
    return result

  if isinstance(params, lstm.LSTMParams):
    return split_gates("ifgo", "h")
  if isinstance(params, gru.GRUParams):
    result = split_gates("rzn", "i")
    result["hn"]["bias"] = params.b_n
    return result
  if isinstance(params, rnn.RNNParams):
    i = {"kernel": params.w_x, "bias": params.b}
    return {"i": i, "h": {"kernel": params.w_h}}
  raise ValueError(
    "expected the params of lstm, gru or rnn, got " + type(params).__name__
  )


def from_nnx(module: Any) -> tuple[Cell, Params]:
  """Return our cell and the params equal to an nnx cell's weights.

  Args:
    module: an nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell.

  Raises:
    ValueError: it is another module.
  """
  cell, variables = _variables(module)
  w_x, w_h, b = (
    jnp.concatenate([part[...] for part in parts], axis=-1)
    for parts in variables
  )
  if cell is lstm:
    return cell, lstm.LSTMParams(w_x, w_h, b)
  if cell is rnn:
    return cell, rnn.RNNParams(w_x, w_h, b)
  b_n = jnp.zeros(w_h.shape[:1], b.dtype)  # nnx.GRUCell has no such bias
  return cell, gru.GRUParams(w_x, w_h, b, b_n)


def to_nnx(params: Params, module: Any) -> None:
  """Write params into the weights of an existing nnx cell, in place.

  Args:
    params: of `lstm`, `gru` or `rnn`.
    module: an nnx cell of the same kind and sizes.

  Raises:
    ValueError: the module is of another kind or size, or params.b_n is not 0.
      The module is then unchanged.
  """
  cell, variables = _variables(module)
  name = type(module).__name__
  if type(params) not in CELL_OF_PARAMS:
    expected = "the params of lstm, gru or rnn"
    raise ValueError(f"expected {expected}, got {type(params).__name__}")
  if CELL_OF_PARAMS[type(params)] is not cell:
    raise ValueError(f"{name} cannot hold {type(params).__name__}")
  if cell is gru and params.b_n.any():
    raise ValueError("params.b_n must be 0: nnx.GRUCell has no such bias")
  weights: list[tuple[Any, jax.Array]] = []
  for field, parts in zip(("w_x", "w_h", "b"), variables, strict=True):
    leaf, like = getattr(params, field), parts[0][...]
    shape = (*like.shape[:-1], like.shape[-1] * len(parts))
    if leaf.shape != shape:
      shapes = f"{shape}, got {leaf.shape}"
      raise ValueError(f"{field} of this {name} must be {shapes}")
    weights += zip(parts, jnp.split(leaf, len(parts), axis=-1), strict=True)
  for part, value in weights:
    part[...] = value.astype(part[...].dtype)


def _variables(module: Any) -> tuple[Cell, tuple[list, list, list]]:
  """Return our cell for an nnx module, and its variables of w_x, w_h and b.

  Each of the three is a list of variables, to be concatenated along the gates.
  """
  if isinstance(module, nnx.LSTMCell):
    inputs = module.ii, module.if_, module.ig, module.io
    hidden = module.hi, module.hf, module.hg, module.ho
    return lstm, (
      [linear.kernel for linear in inputs],
      [linear.kernel for linear in hidden],
      [linear.bias for linear in hidden],
    )
  for cell, module_type, bias_layer in (
    (lstm, nnx.OptimizedLSTMCell, "dense_h"),
    (gru, nnx.GRUCell, "dense_i"),
    (rnn, nnx.SimpleCell, "dense_i"),
  ):
    if isinstance(module, module_type):
      w_x, w_h = module.dense_i.kernel, module.dense_h.kernel
      return cell, ([w_x], [w_h], [getattr(module, bias_layer).bias])
  raise ValueError(
    "expected an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, "
    f"got {type(module).__name__}"
  )


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
