"""What the converters share: arrays read from tensors, and checks of shapes.

PyTorch is not imported: a tensor is read by its own methods, a module by its
`state_dict`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import gru, gru_reset_before, lstm, projected_lstm, rnn
from lstm_jax.cells.weight_checks import check_weights, parts_of

Array = np.ndarray | jax.Array

CELL_OF_PARAMS: dict[type, Any] = {
  lstm.LSTMParams: lstm,
  projected_lstm.ProjectedLSTMParams: projected_lstm,
  gru.GRUParams: gru,
  gru_reset_before.ResetBeforeGRUParams: gru_reset_before,
  rnn.RNNParams: rnn,
}


def check_fit(params: Any) -> None:
  """Raise ValueError unless the shapes of params fit each other.

  Args:
    params: of any cell. Types that are not in CELL_OF_PARAMS pass unchecked.
  """
  cell = CELL_OF_PARAMS.get(type(params))
  if cell is not None:
    check_weights(parts_of(cell), params)


def copied_arrays(params: Any) -> Any:
  """Return a cell's params with each array read by `as_array`."""
  arrays = params._asdict().items()
  return type(params)(*(as_array(f"params.{name}", x) for name, x in arrays))


def read_source(source: Any, prefix: str) -> tuple[dict[str, Array], Any]:
  """Return the arrays of a module or a state_dict, and the nonlinearity.

  Args:
    source: a module, or a mapping from names to tensors or arrays.
    prefix: what the names of the layer's tensors begin with, "" for nothing. It
      is removed from the names.

  Returns:
    (arrays, nonlinearity): the arrays whose names begin with the prefix; and
    the nonlinearity ("tanh" or "relu" of an nn.RNN) of the module at this
    prefix, None if that module has none or the source is a mapping.

  Raises:
    ValueError: the source is neither a module nor a mapping; a name or the
      prefix is not a str; the source has layers, but none with this prefix; no
      name begins with the prefix; or a value is not an array of floats.
  """
  nonlinearity = None
  if not isinstance(source, Mapping):
    if not hasattr(source, "state_dict") or isinstance(source, type):
      found = "a class" if isinstance(source, type) else type(source).__name__
      raise ValueError(f"expected a module or a state_dict, got {found}")
    module, source = source, source.state_dict()
    for name in filter(None, str(prefix).split(".")):
      module = getattr(module, name, None)
    nonlinearity = getattr(module, "nonlinearity", None)
  for name in source:
    if not isinstance(name, str):
      raise ValueError(f"names of a state_dict must be str, got {name!r}")
  first = "weight_hh_l0"  # every nn.LSTM, nn.GRU and nn.RNN has it
  layers = {n.removesuffix(first) for n in source if n.endswith(first)}
  own = [name for name in source if name.startswith(f"{prefix}weight_")]
  if layers and not own:
    raise ValueError(
      f"prefix must be {' or '.join(map(repr, sorted(layers)))}, got {prefix!r}"
    )
  if not isinstance(prefix, str):
    raise ValueError(f"prefix must be a str, got {prefix!r}")
  names = [name for name in source if name.startswith(prefix)]
  if prefix and not names:
    raise ValueError(
      f"no name begins with {prefix!r}, got {', '.join(sorted(source))}"
    )
  arrays = {
    name.removeprefix(prefix): as_array(name, source[name]) for name in names
  }
  return arrays, nonlinearity


def as_array(name: str, x: Any) -> Array:
  """Return a tensor or an array as an array of floats, with the same values.

  JAX's arrays, which a transformation may trace, stay as they are, and so do
  read-only arrays that own their memory. All others are copied: JAX may read
  NumPy's memory, even for `jnp.array`, after a converter has returned, when the
  caller may already write to it.

  Args:
    name: the name of x in an error.
    x: a tensor, or an array.

  Raises:
    ValueError: x has no values, is quantised, is not an array, or holds no
      floats of 16 to 64 bits.
  """
  if hasattr(x, "detach"):
    x = _tensor_as_array(name, x)
  elif not isinstance(x, jax.Array):
    given = x
    try:
      x = np.asarray(x)
    except ValueError as error:  # such as rows of unequal lengths
      raise ValueError(f"{name} cannot be read as an array: {error}") from None
    if x.dtype == object and x is not given:  # such as a dict
      kind = type(given).__name__
      raise ValueError(f"{name} must be an array of floats, got {kind}")
    if not x.dtype.isnative:  # JAX takes only the machine's byte order
      x = x.astype(x.dtype.newbyteorder("="))
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} must hold floats, got {x.dtype}")
  if not 2 <= x.dtype.itemsize <= 8:  # such as float8, NumPy's longdouble
    raise ValueError(f"{name} must hold floats of 16 to 64 bits, got {x.dtype}")
  if isinstance(x, jax.Array) or (x.flags.owndata and not x.flags.writeable):
    return x
  return np.array(x)


def _tensor_as_array(name: str, x: Any) -> np.ndarray:
  if getattr(x, "is_meta", False):
    raise ValueError(f"{name} has no values: it is a tensor on the meta device")
  if getattr(x, "is_quantized", False):
    raise ValueError(f"{name} must hold floats, got a quantised {x.dtype}")
  x = x.detach().cpu()
  try:
    if str(x.dtype) == "torch.bfloat16":  # NumPy has no such dtype of its own
      return x.float().numpy().astype(jnp.bfloat16)  # exact
    return x.numpy()
  except (RuntimeError, TypeError) as error:  # such as a DTensor's
    raise ValueError(f"{name} cannot be read as an array: {error}") from None


def check_no_bias(name: str, x: Any) -> None:
  """Raise ValueError unless a bias is 0, as in a module with bias=False."""
  if x.any():
    largest = np.abs(np.asarray(x, np.float64)).max()
    raise ValueError(
      f"{name} must be 0 with bias=False, got magnitudes of up to {largest:g}"
    )


@contextmanager
def prefixed(prefix: Any) -> Iterator[None]:
  """Put what is read, such as a layer, before the message of a ValueError."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{prefix}: {error}") from None
