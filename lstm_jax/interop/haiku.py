"""Weights to and from the cores of Haiku: hk.LSTM, hk.GRU and hk.VanillaRNN.

Haiku's parameters are a mapping from the path of a module to its arrays:

  module of Haiku         its array     ours

  lstm/linear             w [D+H, 4H]   w_x above w_h; the gates are i, g, f, o
                          b [4H]        b; hk.LSTM adds 1 to its part for f
  gru                     w_i [D, 3H]   w_x; the gates are z, r, n
                          w_h [H, 3H]   w_h
                          b [3H]        b
  vanilla_rnn/linear      w [D, H]      w_x
                          b [H]         b, to which linear_1's b is added
  vanilla_rnn/linear_1    w [H, H]      w_h
                          b [H]         absent if double_bias=False

hk.GRU applies the reset gate before the product: `gru_reset_before`. Its z is
the share of the state that is replaced; ours is the share that is kept, 1 − z.
Since 1 − σ(s) = σ(−s), the weights of z change their sign. Our n is Haiku's a.
hk.VanillaRNN has a relu: `rnn.with_activation(RELU)`. `to_haiku` writes our b
as the first of its two biases, and 0 as the second. Haiku need not be
installed.

  >>> import jax
  >>> from lstm_jax.cells import lstm
  >>> weights = to_haiku(lstm.init(jax.random.key(0), 3, 5))
  >>> weights["lstm/linear"]["w"].shape
  (8, 20)
  >>> cell, params = from_haiku(weights)
  >>> cell is lstm, params.w_h.shape
  (True, (5, 20))

Source: `haiku/_src/recurrent.py` of Haiku 0.0.17.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells import RELU, gru_reset_before, lstm, rnn
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.interop.tensors import (
  CELL_OF_PARAMS,
  Array,
  as_array,
  check_fit,
  copied_arrays,
)

FORGET_BIAS = 1.0  # added by hk.LSTM at every time step
LINEAR = "linear", "linear_1"
GRU_NAMES = "w_i", "w_h", "b"


def from_haiku(
  weights: Any, *, name: str | None = None
) -> tuple[Cell[Any, Any], Params]:
  """Return our cell and the params of a Haiku core.

  Without `jax_enable_x64`, float64 becomes float32. The 1 is added to an LSTM's
  forget bias in the dtype of the weights, which rounds small biases: in
  bfloat16 by up to 0.004. Convert narrow weights to float32 to keep them.

  Args:
    weights: the parameters of a transformed function with an hk.LSTM, hk.GRU or
      hk.VanillaRNN, as its `init` returns them.
    name: the path of the core's module, such as "policy/~/lstm"; needed if
      weights hold other parameters too.

  Raises:
    ValueError: weights are not such a mapping; there is no core of this name,
      or it is the name of a layer inside a core; name is None, but weights do
      not hold exactly one core; the parameters are those of another module
      (that of one or two Linear layers may have the names and shapes of an LSTM
      or VanillaRNN, and is then taken for it); an array is missing, has a name
      or a shape that does not fit the others, or holds no floats.

  Do not pass gradients: the forget bias of 1 would be added to that of an LSTM,
  and the equal gradients of a VanillaRNN's two biases would be summed.
  """
  core, layers = _one_core(weights, name)
  is_linear = "w" in layers.get("", ())
  if is_linear and name is not None:
    raise ValueError(
      "name must be the path of an LSTM, GRU or VanillaRNN, such as 'lstm', "
      f"got {name!r}, that of a linear layer"
    )
  if set(layers) == {""} and not is_linear:
    return _from_gru(core, layers[""])
  if set(layers) == {"linear"}:
    return _from_lstm(f"{core}/linear", layers["linear"])
  if set(layers) == {*LINEAR}:
    return _from_rnn(core, *(layers[layer] for layer in LINEAR))
  raise ValueError(
    "expected the parameters of an LSTM, GRU or VanillaRNN, got "
    + ", ".join(f"{core}/{layer}".rstrip("/") for layer in sorted(layers))
  )


def to_haiku(
  params: Params,
  *,
  name: str | None = None,
  forget_bias: float = FORGET_BIAS,
  double_bias: bool = True,
) -> dict[str, dict[str, jax.Array]]:
  """Return the parameters of the Haiku core with these weights.

  Without `jax_enable_x64`, NumPy's float64 becomes float32.

  Args:
    params: of `lstm`, `gru_reset_before` or `rnn.with_activation(RELU)`, or
      their gradients, with forget_bias=0. Params of the standard `rnn` are
      accepted, since they have the same type as with RELU, but Haiku computes
      with relu, not tanh. In Haiku, the gradients of the two biases of a
      VanillaRNN are equal; the second one returned here is 0.
    name: the path of the core's module; None for "lstm", "gru" or
      "vanilla_rnn".
    forget_bias: what is subtracted from the forget gate's part of an LSTM's b;
      0 to convert gradients.
    double_bias: False for a VanillaRNN with double_bias=False.

  Raises:
    ValueError: the params are of a cell that Haiku does not have, or do not fit
      each other.
  """
  check_fit(params)
  if type(params) in CELL_OF_PARAMS:
    params = copied_arrays(params)
  if isinstance(params, lstm.LSTMParams):
    shift = jnp.zeros_like(params.b).reshape(4, -1).at[1].set(forget_bias)  # f
    b = params.b - shift.ravel()
    w = jnp.concatenate([params.w_x, params.w_h])
    w, b = (_exchanged_f_and_g(x) for x in (w, b))
    return {f"{name or 'lstm'}/linear": {"w": w, "b": b}}
  if isinstance(params, gru_reset_before.ResetBeforeGRUParams):
    arrays = [_exchanged_r_and_z(x, z_index=1) for x in params]
    return {name or "gru": dict(zip(GRU_NAMES, arrays, strict=True))}
  if isinstance(params, rnn.RNNParams):
    w_x, w_h, b = map(jnp.array, params)  # copies
    first, second = {"w": w_x, "b": b}, {"w": w_h}
    if double_bias:
      second["b"] = jnp.zeros_like(b)
    core = name or "vanilla_rnn"
    return {f"{core}/linear": first, f"{core}/linear_1": second}
  raise ValueError(
    "params must be of lstm, gru_reset_before or rnn, which Haiku has, got "
    f"{type(params).__name__}"
  )


def _one_core(
  weights: Any, name: str | None
) -> tuple[str, dict[str, Mapping[str, Any]]]:
  """Return the path of a core, and the arrays of its layers by their names.

  A GRU has no layers: its own arrays are those of the layer "".
  """
  expected = "a mapping from paths of modules to mappings from names to arrays"
  if not isinstance(weights, Mapping):
    found = type(weights).__name__
    raise ValueError(f"weights must be {expected}, got {found}")
  for path, arrays in weights.items():
    if not isinstance(path, str) or not isinstance(arrays, Mapping):
      found = f"{{{path!r}: {type(arrays).__name__}}}"
      raise ValueError(f"weights must be {expected}, got {found}")
  cores: dict[str, dict[str, Mapping[str, Any]]] = {}
  for path, arrays in weights.items():
    core, _, layer = path.rpartition("/")
    # Whether this is the path of a core, such as a GRU, not of a layer in one:
    # a layer has a parent, and no w_h, as a GRU has even if it is named linear.
    is_core = layer not in LINEAR or not core or "w_h" in arrays
    if path == name or (name is None and is_core):
      core, layer = path, ""
    if name in (None, core):
      cores.setdefault(core, {})[layer] = arrays
  paths = ", ".join(sorted(weights)) or "nothing"
  if not cores and name is not None:
    raise ValueError(f"there is no core {name!r}, got {paths}")
  if len(cores) != 1:
    raise ValueError(
      f"weights must be of one core, or name must say which, got {paths}"
    )
  return next(iter(cores.items()))


def _read(
  path: str, arrays: Mapping[str, Any], names: tuple[str, ...]
) -> list[Array]:
  """Return the arrays of a module, which must have exactly these names."""
  if set(arrays) != set(names):
    expected, found = ", ".join(names), ", ".join(sorted(arrays))
    raise ValueError(f"{path} must have {expected}, got {found or 'nothing'}")
  return [as_array(f"{path}/{name}", arrays[name]) for name in names]


def _from_lstm(path: str, arrays: Mapping[str, Any]) -> tuple[Cell, Params]:
  w, b = _read(path, arrays, ("w", "b"))
  hidden = check_shape(f"{path}/b", b, "any").shape[0] // 4
  if not hidden or b.shape[0] % 4:
    raise ValueError(f"{path}/b must be [4H], got {b.shape}")
  w = check_shape(f"{path}/w", w, "any", 4 * hidden)
  if hidden >= len(w):
    raise ValueError(
      f"{path}/w must be [D+H, 4H] and b [4H], got {w.shape} and {b.shape}"
    )
  w, b = (_exchanged_f_and_g(x) for x in (w, b))
  b = b.reshape(4, hidden).at[1].add(FORGET_BIAS).ravel()  # 1 is f
  w_x, w_h = jnp.split(w, [len(w) - hidden])
  return lstm, lstm.LSTMParams(w_x, w_h, b)


def _from_gru(path: str, arrays: Mapping[str, Any]) -> tuple[Cell, Params]:
  w_x, w_h, b = _read(path, arrays, GRU_NAMES)
  hidden = len(check_shape(f"{path}/w_h", w_h, "any", "any"))
  check_shape(f"{path}/w_h", w_h, hidden, 3 * hidden)
  check_shape(f"{path}/w_i", w_x, "any", 3 * hidden)
  check_shape(f"{path}/b", b, 3 * hidden)
  params = (_exchanged_r_and_z(x, z_index=0) for x in (w_x, w_h, b))
  return gru_reset_before, gru_reset_before.ResetBeforeGRUParams(*params)


def _from_rnn(
  core: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[Cell, Params]:
  path, path_1 = (f"{core}/{layer}" for layer in LINEAR)
  w_x, b = _read(path, first, ("w", "b"))
  w_h, *b_h = _read(path_1, second, ("w", "b") if "b" in second else ("w",))
  hidden = len(check_shape(f"{path_1}/w", w_h, "any", "any"))
  check_shape(f"{path_1}/w", w_h, hidden, hidden)
  check_shape(f"{path}/w", w_x, "any", hidden)
  check_shape(f"{path}/b", b, hidden)
  for x in b_h:
    b = b + check_shape(f"{path_1}/b", x, hidden)
  params = rnn.RNNParams(*(jnp.array(x) for x in (w_x, w_h, b)))  # copies
  return rnn.with_activation(RELU), params


def _exchanged_f_and_g(x: Array) -> jax.Array:
  """Return an array [..., 4H] of i, f, g, o from i, g, f, o, or back."""
  i, f, g, o = jnp.split(jnp.asarray(x), 4, axis=-1)
  return jnp.concatenate([i, g, f, o], axis=-1)


def _exchanged_r_and_z(x: Array, z_index: int) -> jax.Array:
  """Return an array [..., 3H] of r, z, n from z, r, n, or back.

  Args:
    x: the array.
    z_index: which part of x is z, 0 or 1. This part changes its sign.
  """
  parts = jnp.split(jnp.asarray(x), 3, axis=-1)
  parts[z_index] = -parts[z_index]
  first, second, n = parts
  return jnp.concatenate([second, first, n], axis=-1)
