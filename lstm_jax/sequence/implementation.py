"""Which program computes a sequence: the `implementation` argument.

  None, "xla"     a scan over time, compiled by XLA for any device
  "mosaic_gpu"    one GPU kernel for all time steps (`lstm_jax.mosaic_gpu`)

The kernels accept fewer cells and options than the scan does. Whatever they do
not accept is an error, so that nobody runs a scan and takes it for a kernel.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.cell import Cell, Params, State
from lstm_jax.cells.platform import default_device, platform
from lstm_jax.cells.properties import cell_name
from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.adjoint import Adjoint, Explicit

Implementation = Literal["xla", "mosaic_gpu"]

VERSIONS = (0, 11, 2), (0, 13)  # of jax: from the first, below the second
VERSIONS_TEXT = "{}.{}.{} to {}.{}".format(
  *VERSIONS[0], VERSIONS[1][0], VERSIONS[1][1] - 1
)
COUNTS: dict[Any, limits.Counts] = {  # of each cell that has kernels
  lstm: limits.LSTM,
  gru: limits.GRU,
  rnn: limits.RNN,
}


def check_implementation(implementation: Any) -> None:
  """Raise ValueError unless this is an implementation, or None."""
  # Only text is compared: an array would be compared element by element.
  if not isinstance(implementation, str | None) or (
    implementation not in (None, "xla", "mosaic_gpu")
  ):
    raise ValueError(
      "implementation must be None, 'xla' or 'mosaic_gpu', "
      f"got {implementation!r}"
    )


def check_kernel(
  cell: Cell,
  params: Params,
  state: State,
  xs: jax.Array,
  compute_dtype: Any,
  adjoint: Adjoint,
  others: dict[str, Any],
) -> limits.Plan:
  """Return how the kernels divide a layer, after a check of the arguments.

  Args:
    cell: that of `unroll`.
    params: the weights.
    state: the state before the first step.
    xs: inputs [T, ..., D] or tokens [T, ...].
    compute_dtype: the dtype of the products' operands; None for that of the
      weights.
    adjoint: as in `unroll`.
    others: the options of `unroll` that the kernels lack, by name; each must
      be None.

  Raises:
    ValueError: the kernels cannot run here, or do not take an argument.
  """
  _check_device()
  if cell not in COUNTS:
    raise _refused(f"the cells lstm, gru and rnn, got {cell_name(cell)}")
  if adjoint != Explicit():
    raise _refused(f"adjoint=Explicit(), got {adjoint}")
  for name, value in others.items():
    if value is not None:
      raise _refused(f"no {name}")
  operands = jnp.dtype(compute_dtype or params.w_h.dtype)
  dtypes = {f"params.{k}": v.dtype for k, v in params._asdict().items()}
  dtypes |= {f"state.{k}": v.dtype for k, v in state._asdict().items()}
  dtypes |= {"xs": xs.dtype, "compute_dtype": operands}
  for name, dtype in dtypes.items():
    token = name == "xs" and not jnp.issubdtype(dtype, jnp.floating)
    if not token and dtype not in (jnp.float32, jnp.bfloat16):
      raise _refused(f"float32 and bfloat16, got {name} of {dtype}")
  if 0 in params.w_x.shape:
    shape = list(params.w_x.shape)
    raise _refused(f"D and H of at least 1, got w_x {shape}")
  hidden_size = state.h.shape[-1]
  if not isinstance(state.h.size, int) or not isinstance(xs.shape[0], int):
    raise _refused(f"a T and a B that are numbers, got xs {xs.shape}")
  batch_size = state.h.size // hidden_size
  counts, itemsize = COUNTS[cell], operands.itemsize
  plan = limits.divide(counts, hidden_size, batch_size, itemsize)
  if plan is None:
    largest = limits.largest(counts, itemsize)
    raise _refused(
      f"H up to {largest} with products in {operands}, got {hidden_size}"
    )
  return plan


def _check_device() -> None:
  """Raise ValueError unless JAX can compile the kernels for its device."""
  target = platform()
  if target not in ("gpu", "cuda"):
    raise ValueError(
      "implementation='mosaic_gpu' needs an H100 or H200 and lstm-jax[cuda], "
      f"got a {target}: leave implementation out here"
    )
  # Within `traced_for("cuda")`, the target is "cuda": there may be no device.
  if target == "gpu":
    device: Any = default_device()
    if isinstance(device, str | None):
      device = jax.devices(target)[0]
    if device.compute_capability != "9.0":
      raise ValueError(
        "implementation='mosaic_gpu' needs an H100 or H200 (compute capability "
        f"9.0), got {device.device_kind} ({device.compute_capability})"
      )
  first, end = VERSIONS
  if not first <= jax.__version_info__ < end:
    raise ValueError(
      f"implementation='mosaic_gpu' needs jax {VERSIONS_TEXT}, "
      f"got {jax.__version__}"
    )


def _refused(what: str) -> ValueError:
  return ValueError(f"implementation='mosaic_gpu' takes {what}")
