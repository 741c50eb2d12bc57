"""Apply a cell to every time step of a sequence: `unroll`.

`unroll` checks its arguments (`arguments`), wraps the cell in the features
asked for (`wrappers`), and calls the function of the chosen gradient (in
`checkpointing`, which calls `scan`, or in `primal`) or the kernels (`fused`).
A feature that is not used adds nothing: the compiled program is then that of
the plain cell.

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax.cells import lstm
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> xs = jnp.ones((7, 2, 3))
  >>> state, hs = unroll(lstm, params, None, xs, lengths=jnp.array([7, 4]))
  >>> hs.shape, bool((hs[4:, 1] == 0).all())
  ((7, 2, 5), True)
"""

from functools import partial
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from lstm_jax.cells.cell import Cell, ParamsT, StateT
from lstm_jax.cells.checks import check_rows
from lstm_jax.cells.mapped import over_batch
from lstm_jax.cells.mesh import auto_sharded, batch_sharding, vary_alike
from lstm_jax.cells.platform import compiled
from lstm_jax.cells.precision import check_float
from lstm_jax.cells.reverse_only import reverse_only
from lstm_jax.cells.weight_checks import PARTS
from lstm_jax.sequence import wrappers
from lstm_jax.sequence.adjoint import (
  Adjoint,
  Autodiff,
  Explicit,
  Step,
  check_adjoint,
)
from lstm_jax.sequence.arguments import (
  as_inputs,
  bool_array,
  check_functions,
  check_sequence,
  combined_mask,
  dropout_factors,
  exchange_axes,
  naming_a_changed_state,
  zero_masked,
  zoneout_rates,
)
from lstm_jax.sequence.checkpointing import (
  scan_checkpointed,
  scan_in_cache,
)
from lstm_jax.sequence.fused import scan_fused, step_flags
from lstm_jax.sequence.implementation import (
  Implementation,
  check_implementation,
  check_kernel,
)
from lstm_jax.sequence.primal import (
  ScanOptions,
  forward_step,
  scan_steps,
)

NO_FORWARD_MODE = (
  "the hand-derived gradient of unroll has no forward mode (jvp, linearize, "
  "jacfwd): pass adjoint=Autodiff()"
)


class UnrollOptions(TypedDict, total=False):
  """The options of `unroll` that `unroll_both` and `unroll_stack` also take.

  They hold for every direction or layer. `unroll` documents them.
  """

  mask: jax.Array | None
  lengths: jax.Array | None
  reset: jax.Array | None
  time_major: bool
  adjoint: Adjoint
  compute_dtype: DTypeLike | None
  implementation: Implementation | None


def unroll(
  cell: Cell[ParamsT, StateT],
  params: ParamsT,
  state: StateT | None,
  xs: jax.Array,
  *,
  mask: jax.Array | None = None,
  lengths: jax.Array | None = None,
  reset: jax.Array | None = None,
  zoneout: StateT | None = None,
  state_dropout: jax.Array | None = None,
  time_major: bool = True,
  reverse: bool = False,
  adjoint: Adjoint = Explicit(),
  compute_dtype: DTypeLike | None = None,
  implementation: Implementation | None = None,
) -> tuple[StateT, jax.Array]:
  """Apply `cell` to every time step of xs in turn.

  Computes the same as this loop, by a scan over time or, for a linear
  recurrence with `Explicit`, for all time steps at once:

    hs = []
    for x in xs:
      state = cell.step(params, state, x)
      hs.append(state.h)
    return state, stack(hs)

  Args:
    cell: `lstm`, `gru`, `rnn`, or any object with the functions of `Cell`.
    params: the cell's weights.
    state: the state before the first step, as `initial_state` returns it; None
      for the zero state.
    xs: inputs [T, ..., D], or integer tokens [T, ...] in [0, D), which stand
      for one-hot rows. The axes `...` are the batch axes of the state. Tokens
      outside that range raise no error: they read some row of the weights, and
      gradients may be missing.
    mask: bool [T, ...]. Where it is False, the step leaves the state unchanged
      and its output is 0. Masked inputs, NaN included, reach no output and no
      gradient.
    lengths: integers [...] in [0, T]. Only the first `lengths[b]` steps of row
      b count; the rest are masked. With a mask, both must allow a step. A
      length below 0 is taken for 0, and one above T for T.
    reset: bool [T, ...]. Where it is True, the step starts from the zero state,
      as at the start of an episode. A masked step does not reset.
    zoneout: the share of the previous state that each step keeps, as a state
      (such as `LSTMState`) of arrays that broadcast to [T, ..., H]. True keeps
      a unit's value, False replaces it, and a number between 0 and 1 mixes
      both. All values must be finite. No gradient flows to them.
      `regularize.zoneout` draws them.
    state_dropout: factors that multiply h before each step: an array, not one
      number, that broadcasts to [T, ..., H]. No gradient flows to them.
      `regularize.factors` draws them.
    time_major: False if the first two axes of xs, mask, reset and outputs are
      [B, T] rather than [T, B]; zoneout and state_dropout stay [T, B, H]. The
      axes are exchanged once, outside the loop, and an error that compares xs
      with the state or the weights gives the exchanged shape.
    reverse: go from the last step to the first. Each output stays at the place
      of its input, and a row with a length starts at its own last step.
    adjoint: how the gradient is computed: `Explicit`, `Step` or `Autodiff`.
    compute_dtype: the dtype of the operands of matrix products, such as
      `jnp.bfloat16`; None for that of the weights. Sums, states and gradients
      keep their dtypes, but with `Step` and `Autodiff` the weights' gradients
      are added up over time in the compute dtype.
    implementation: "mosaic_gpu" for one GPU kernel over all time steps in each
      pass, forward and backward; None or "xla" for a scan. The kernels take
      lstm, gru and rnn on an H100 or H200, with `Explicit()`, without zoneout
      and state_dropout, and with H up to `mosaic_gpu.limits`. Their products
      are in bfloat16, or in TF32 if the operands are float32. The kernels were
      compiled and interpreted, but never ran on a device.

  Returns:
    (state, hs): the state after the last step, and the outputs [T, ..., H].

  Raises:
    ValueError: cell lacks a function that is called (with `Explicit`, those of
      the backward too), is wrapped or not hashable, or changes the shapes or
      dtypes of the state; xs is not an array, or has no time step; params are
      of another cell; xs, the state and the weights do not fit each other;
      mask, lengths, reset, zoneout or state_dropout do not fit xs;
      state_dropout is one number; adjoint is none of the three; compute_dtype
      is not a floating-point dtype; implementation is not one of those above,
      or cannot run here or with these arguments.
    TypeError: forward mode is used with an adjoint other than `Autodiff`, or
      the gradient of the kernels is differentiated again.
  """
  check_adjoint(adjoint)
  check_implementation(implementation)
  if compute_dtype is not None:
    check_float("compute_dtype", compute_dtype)
    compute_dtype = jnp.dtype(compute_dtype)  # one program for dtype and name
  if not time_major:
    xs, mask, reset = exchange_axes(xs, mask, reset)
  xs = as_inputs(xs)
  initial: Any = check_sequence(cell, params, state, xs)
  if isinstance(adjoint, Explicit):
    check_functions(cell, PARTS, ": pass adjoint=Autodiff()")
  step_shape = xs.shape[0], *initial.h.shape[:-1]  # [T, ...]
  mask = combined_mask(mask, lengths, step_shape)
  if mask is not None:
    xs = zero_masked(mask, xs)  # since 0 · NaN is NaN
  if reset is not None:
    reset = bool_array("reset", reset, step_shape)
  options = ScanOptions(compute_dtype, bool(reverse))  # a tracer is refused
  scan: tuple[Any, ...]  # a function and its static arguments
  extras: Any
  if implementation == "mosaic_gpu":
    others = {"zoneout": zoneout, "state_dropout": state_dropout}
    plan = check_kernel(
      cell, params, initial, xs, compute_dtype, adjoint, others
    )
    scan = scan_fused, cell, options, plan
    extras = step_flags(mask, reset)
  else:
    wrapped, extras = _with_features(
      cell, initial, step_shape, mask, reset, zoneout, state_dropout
    )
    if extras:  # the wrappers call the cell's `recur`
      check_functions(cell, ("recur",))
    elif not isinstance(adjoint, Explicit):
      is_step = isinstance(adjoint, Step)
      check_functions(cell, ("step" if is_step else "forward",))
    scan = _scan, wrapped, options, adjoint
  *inputs, extras = vary_alike((params, initial, xs, extras))
  if not isinstance(adjoint, Autodiff):
    inputs = reverse_only(inputs, NO_FORWARD_MODE)
  with naming_a_changed_state(cell):
    last, hs = _run(scan, *inputs, extras)
  hs = hs if mask is None else zero_masked(mask, hs)
  return last, hs if time_major else jnp.swapaxes(hs, 0, 1)


def _run(scan, *inputs):
  """Return (state, hs); an axis of `vmap` can be a batch axis (`over_batch`).

  Args:
    scan: a function and its static arguments: (`_scan`, cell, options, adjoint)
      or (`scan_fused`, cell, options, plan).
    *inputs: params, state, xs and extras; see `_apply`.
  """

  def run(params, state, xs, extras):
    batch = batch_sharding((params, extras), state, xs, start=1)
    time = jax.typeof(xs).sharding.spec[0]
    steps = NamedSharding(batch.mesh, PartitionSpec(time, *batch.spec))
    return _apply(scan, (batch, steps), (params, state, xs), extras)

  # The kernels are planned for this batch: JAX maps them by another grid axis.
  # With `Autodiff`, JAX maps the scan before it differentiates it.
  if scan[0] is scan_fused or isinstance(scan[-1], Autodiff):
    return run(*inputs)
  return over_batch(run, 1, *inputs)  # 1 axis, time, before the batch


@partial(compiled, num_static=2)
def _apply(scan, shardings, inputs, extras):
  """Return (state, hs).

  Args:
    scan: a function and its static arguments.
    shardings: how the state and the outputs lie on an explicit mesh.
    inputs: (params, state, xs).
    extras: the argument that each wrapper of the cell adds, [T, ...]; for the
      kernels, `step_flags`.
  """
  function, *static = scan
  return auto_sharded(partial(function, *static), shardings)(*inputs, extras)


def _with_features(
  cell, initial, step_shape, mask, reset, zoneout, state_dropout
):
  """Return (cell, extras): the cell with the features that are not None.

  The extras are the arguments that the wrappers add, [T, ...], that of the
  outermost wrapper first.
  """
  extras: tuple = ()
  if state_dropout is not None:
    cell = wrappers.state_dropout(cell)
    factor = dropout_factors(state_dropout, initial.h, step_shape)
    extras = lax.stop_gradient(factor), *extras
  if zoneout is not None:
    cell = wrappers.zoneout(cell)
    rates = zoneout_rates(zoneout, initial, step_shape)
    extras = lax.stop_gradient(rates), *extras
  if reset is not None:
    cell = wrappers.resettable(cell)
    extras = reset, *extras
  if mask is not None:
    cell = wrappers.masked(cell)
    extras = mask, *extras
  return cell, extras


def _scan(cell, options, adjoint, *inputs):
  """Return (state, hs), by the function that has the chosen gradient."""
  match adjoint:
    case Autodiff():
      return scan_steps(forward_step(cell), options, *inputs)
    case Step():
      return scan_steps(cell.step, options, *inputs)
    case Explicit(residuals="gates", chunk=None):
      return scan_in_cache(cell, options, *inputs)
    case Explicit(residuals, chunk):
      # A number in the state would become [T], and not broadcast to [T, B, H].
      if residuals == "recompute":
        check_rows("recompute", inputs[1])
      return scan_checkpointed(cell, options, residuals, chunk, *inputs)
