"""Flax's RNN modules, with `unroll` in place of Flax's loop over time.

Use `LinenRNN` in place of flax.linen's RNN, and `NNXRNN` in place of
flax.nnx's:

  model = LinenRNN(linen.OptimizedLSTMCell(128))  # was linen.RNN(...)

The cell is Flax's own, with the names, shapes and initial values of its
weights, so that checkpoints can be restored. (A linen module without a name is
named after its class: pass `name="RNN_0"` to restore a checkpoint in which the
module has this name.) `unroll`, with its hand-derived gradient, replaces the
loop over time where all of this holds:

- the cell is an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, not of a
  subclass, with Flax's sigmoid and tanh, and without a residual connection; the
  layers of an nnx cell are plain Linear layers;
- the options of Flax's scan have their defaults, and no `intercept_methods` is
  active;
- weights and carry are all float32 or all float64, and so is the dtype that the
  cell computes in; inputs may be narrower, or integers, and also wider if the
  cell has a `dtype`;
- there is at least one time step, and the carry and `seq_lengths` have exactly
  the shapes that belong to the inputs, where Flax would broadcast some others;
- `seq_lengths` are integers.

Anything else runs in Flax's own RNN, unchanged.

`implementation` is that of `unroll`: "mosaic_gpu" for one GPU kernel for all
time steps. In place of the condition on dtypes above, weights, carry and the
dtype that the cell computes in must then each be float32 or bfloat16. The last
is only that of the operands of products; sums, gates and c are computed in
float32. So the results with bfloat16 differ from Flax's: they are closer to
those with float32. For example:

  LinenRNN(linen.GRUCell(64, dtype=jnp.bfloat16), implementation="mosaic_gpu")

With "mosaic_gpu", any other call is an error: Flax's own RNN is not used.

Where `unroll` is used, four things differ from Flax. Given `seq_lengths`,
padded outputs are 0, where Flax applies the cell to the padding; the final
carry of a sequence of length 0 is its initial carry, where Flax returns the
carry after all the padding; and with several batch axes, the final carry has
the shape of the initial one, where that of Flax has another, or Flax raises an
error. Forward mode (`jax.jvp`, `jax.jacfwd`) raises a TypeError.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.linen.recurrent import flip_sequences

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, State
from lstm_jax.cells.reverse_only import reverse_only
from lstm_jax.interop.flax.equivalence import (
  Call,
  computed_dtype,
  equivalent_cell,
  fits,
  has_flax_dtype,
  is_plain_scan,
)
from lstm_jax.interop.flax.weights import from_linen, from_nnx
from lstm_jax.sequence._unroll import unroll
from lstm_jax.sequence.implementation import (
  Implementation,
  check_implementation,
)

# Not `super().__call__`, with which Flax would record two calls of the module.
LINEN_CALL = inspect.unwrap(linen.RNN.__call__)
NO_FORWARD_MODE = (
  "LinenRNN and NNXRNN have no forward mode (jvp, linearize, jacfwd): use "
  "flax.linen.RNN or flax.nnx.RNN"
)


class Options(NamedTuple):
  """The arguments of a call whose defaults are attributes of the module."""

  return_carry: bool
  time_major: bool
  reverse: bool
  keep_order: bool


class LinenRNN(linen.RNN):
  """`flax.linen.RNN`, with the same arguments, computed by `unroll`.

  Attributes:
    implementation: as in `unroll`.
  """

  implementation: Implementation | None = None

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
    """Return outputs, or (final carry, outputs), as `flax.linen.RNN` does.

    Raises:
      ValueError: implementation is unknown; or it is "mosaic_gpu", and the
        kernels cannot run here, or cannot compute this call of this module.
    """
    check_implementation(self.implementation)
    options = _options(self, return_carry, time_major, reverse, keep_order)
    flax_cell: Any = self.cell
    cell = equivalent_cell(flax_cell) if is_plain_scan(self) else None
    xs = None if cell is None else _time_first(inputs, options)
    if cell is not None and xs is not None:
      carry = initial_carry
      if carry is None:
        key = jax.random.key(0) if init_key is None else init_key
        carry = flax_cell.initialize_carry(key, xs.shape[1:])
      if "params" not in flax_cell.variables:
        flax_cell(carry, xs[0])  # creates the weights
      weights = flax_cell.variables["params"]
      if _are_floats(weights):
        _, params = from_linen(weights)
        call = Call(cell, params, carry, xs, seq_lengths, flax_cell.dtype)
        if _is_ours(self, call):
          return _run(self, call, options)
    _check_flax_may_run(self)
    return LINEN_CALL(
      self,
      inputs,
      initial_carry=initial_carry,
      init_key=init_key,
      seq_lengths=seq_lengths,
      **options._asdict(),
    )


class NNXRNN(nnx.RNN):
  """`flax.nnx.RNN`, with the same arguments, computed by `unroll`.

  Args:
    cell: Flax's cell.
    implementation: as in `unroll`.
    **options: the other arguments of `flax.nnx.RNN`.
  """

  def __init__(
    self,
    cell: Any,
    *,
    implementation: Implementation | None = None,
    **options: Any,
  ):
    super().__init__(cell, **options)
    self.implementation = implementation

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
    """Return outputs, or (final carry, outputs), as `flax.nnx.RNN` does.

    Raises:
      ValueError: as `LinenRNN` does.
    """
    check_implementation(self.implementation)
    options = _options(self, return_carry, time_major, reverse, keep_order)
    flax_cell: Any = self.cell
    cell = equivalent_cell(flax_cell) if is_plain_scan(self) else None
    xs = None if cell is None else _time_first(inputs, options)
    if cell is not None and xs is not None:
      rngs = self.rngs if rngs is None else rngs
      if isinstance(rngs, nnx.Rngs):
        rngs = rngs.carry.fork()  # also with an initial carry, as Flax does
      if initial_carry is None:
        initial_carry = flax_cell.initialize_carry(xs.shape[1:], rngs)
      _, params = from_nnx(flax_cell)
      dtype = flax_cell.dtype
      call = Call(cell, params, initial_carry, xs, seq_lengths, dtype)
      if _is_ours(self, call):
        return _run(self, call, options)
    _check_flax_may_run(self)
    return super().__call__(
      inputs,
      initial_carry=initial_carry,
      seq_lengths=seq_lengths,
      rngs=rngs,
      **options._asdict(),
    )


def _options(module: Any, *values: bool | None) -> Options:
  """Return the options of a call: the module's own where a value is None."""
  own = (getattr(module, field) for field in Options._fields)
  pairs = zip(values, own, strict=True)
  return Options(*(b if a is None else a for a, b in pairs))


def _time_first(inputs: Any, options: Options) -> jax.Array | None:
  """Return inputs as [T, ..., D], or None if they have no time step."""
  xs = jnp.asarray(inputs)
  if xs.ndim < 2:
    return None
  xs = xs if options.time_major else jnp.moveaxis(xs, -2, 0)
  return xs if len(xs) else None


def _are_floats(weights: Any) -> bool:
  """Return whether `from_linen` takes the weights; Flax takes complex ones."""
  leaves = jax.tree.leaves(weights)
  return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def _is_ours(module: Any, call: Call) -> bool:
  """Return whether `unroll` takes a call, rather than Flax's own RNN.

  With "mosaic_gpu" every dtype passes here: `unroll` itself refuses the dtypes
  that the kernels do not take.
  """
  kernels = module.implementation == "mosaic_gpu"
  return fits(call) and (kernels or has_flax_dtype(call))


def _check_flax_may_run(module: Any) -> None:
  """Raise ValueError if kernels were asked for, and Flax's RNN is needed."""
  if module.implementation != "mosaic_gpu":
    return
  if equivalent_cell(module.cell) is None:
    cause = f"the cell {type(module.cell).__name__} or one of its options"
  elif not is_plain_scan(module):
    cause = "an option of the RNN, or an interceptor of methods,"
  else:
    cause = "the shape or type of the inputs, the carry or seq_lengths"
  raise ValueError(
    f"implementation='mosaic_gpu' is not possible here: {cause} needs Flax's "
    "own RNN"
  )


def _run(module: Any, call: Call, options: Options) -> Any:
  """Compute a call by `unroll`, and return what Flax's module returns."""
  cell, params, carry, xs, lengths, _ = call
  computed = computed_dtype(call)
  xs = xs.astype(computed)
  # The carry of Flax's LSTM is (c, h); that of its other cells is h.
  state = lstm.LSTMState(*carry[::-1]) if cell is lstm else _state(cell, carry)
  params, state, xs = reverse_only((params, state, xs), NO_FORWARD_MODE)
  last, hs = unroll(
    cell,
    params,
    state,
    xs,
    lengths=lengths,
    reverse=options.reverse,
    compute_dtype=computed,
    implementation=module.implementation,
  )
  if options.reverse and not options.keep_order:
    hs = flip_sequences(
      hs, lengths, num_batch_dims=hs.ndim - 2, time_major=True
    )
  hs = hs if options.time_major else jnp.moveaxis(hs, 0, -2)
  last_carry = tuple(last[::-1]) if cell is lstm else last.h
  return (last_carry, hs) if options.return_carry else hs


def _state(cell: Cell, h: jax.Array) -> State:
  return gru.GRUState(h) if cell is gru else rnn.RNNState(h)
