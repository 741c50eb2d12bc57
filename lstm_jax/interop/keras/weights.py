"""Convert the arrays of a Keras layer to parameters, and back.

A layer has three arrays, in this order:

  kernel [D, G·H]              w_x
  recurrent_kernel [H, G·H]    w_h
  bias [G·H]                   b

  layer        G    order in Keras    order here
  LSTM         4    i, f, c, o        i, f, g, o, with g for c
  GRU          3    z, r, h           r, z, n, with n for h
  SimpleRNN    1

A `GRU` with reset_after=True, the default, is `gru`. Its bias is [2, 3H], one
row for x and one for h. r and z take the sum of both rows; of the candidate's
part, the first row belongs to b and the second is b_n. `to_keras` writes b in
the first row, and 0 and b_n in the second. A `GRU` with reset_after=False is
`gru_reset_before`. In both, z is the share of the state that is kept, as here.
A `Bidirectional` has the arrays of the forward layer, then those of the
backward layer. With use_bias=False there is no bias array, and b is 0.

Activations other than the defaults give cells of `with_activations`, or of
`rnn.with_activation`. Keras has one activation for the candidate and the output
of an LSTM. Params do not hold the activations: a layer that takes the arrays of
`to_keras` must be made with the activations of the cell.

  >>> import jax
  >>> from lstm_jax.cells import gru
  >>> params = gru.init(jax.random.key(0), 3, 5)
  >>> [array.shape for array in to_keras(params)]
  [(3, 15), (5, 15), (2, 15)]
  >>> cell, same = from_keras(to_keras(params))
  >>> cell is gru, same.b_n.shape
  (True, (5,))

Source: `keras/src/layers/rnn` of Keras 3.15.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import (
  RELU,
  SIGMOID,
  TANH,
  Activation,
  gru,
  gru_reset_before,
  lstm,
  make_hard_sigmoid,
  rnn,
)
from lstm_jax.cells.cell import Cell, Params
from lstm_jax.cells.checks import check_shape
from lstm_jax.cells.properties import cell_name
from lstm_jax.interop.keras.directions import NAMES, SIDES, by_direction
from lstm_jax.interop.tensors import (
  Array,
  check_fit,
  check_no_bias,
  copied_arrays,
)
from lstm_jax.sequence.bidirectional import Directions

ACTIVATIONS = {
  "hard_sigmoid": make_hard_sigmoid(1 / 6),  # Keras 3's slope; Keras 2 has 0.2
  "relu": RELU,
  "sigmoid": SIGMOID,
  "tanh": TANH,
}


def from_keras(
  weights: Sequence[Any] | Mapping[str, Any],
  *,
  activation: str | Activation = "tanh",
  recurrent_activation: str | Activation = "sigmoid",
  reset_after: bool | None = None,
) -> tuple[Cell[Any, Any], Params]:
  """Return the cell and the params of a Keras layer.

  A list of the arrays of two stacked layers with D = H is taken for that of a
  Bidirectional: nothing in the arrays tells them apart.

  Args:
    weights: what `layer.get_weights()` returns for an LSTM, GRU, SimpleRNN, or
      a Bidirectional of one; or a mapping from the paths of its variables, such
      as "lstm/lstm_cell/kernel", to their arrays.
    activation: the layer's, "tanh", "relu", "sigmoid", "hard_sigmoid" (that of
      Keras 3) or an `Activation`, such as `make_hard_sigmoid(0.2)` for that of
      Keras 2.
    recurrent_activation: the same for the gates; checked, but not used, for a
      SimpleRNN, which has none.
    reset_after: that of a GRU, needed only with use_bias=False: otherwise the
      bias, [2, 3H] or [3H], determines it. Ignored for other layers.

  Returns:
    (cell, params), or (cell, `Directions` of params) of a Bidirectional.
    Without `jax_enable_x64`, float64 becomes float32.

  Raises:
    ValueError: weights is neither a list nor a mapping; an array is missing,
      has a shape or dtype that does not fit the others, or holds no floats; a
      name is not that of such an array; the reset_after of a GRU is needed but
      not given, is no bool, or contradicts the bias; or there is no such
      activation.

  Do not pass gradients of a GRU with reset_after=True: for r and z, both rows
  of its bias have equal gradients, which are also the gradient of our b, but
  the sum of both would be returned.
  """
  activations = (
    _activation("activation", activation),
    _activation("recurrent_activation", recurrent_activation),
  )
  directions = {
    side: _from_direction(side, arrays, activations, reset_after)
    for side, arrays in by_direction(weights).items()
  }
  if "" in directions:
    return directions[""]
  (cell, forward), (other, backward) = (directions[side] for side in SIDES)
  if cell is not other:
    found = f"{cell_name(cell)}, {cell_name(other)}"
    raise ValueError(f"both directions must have one cell, got {found}")
  _check_one_size(len(forward.w_x), len(backward.w_x))
  return cell, Directions(forward, backward)


def to_keras(
  params: Params | Directions[Any], *, bias: bool = True
) -> list[np.ndarray]:
  """Return the arrays of the Keras layer, for its `set_weights`.

  Args:
    params: of `lstm`, `gru`, `gru_reset_before` or `rnn`, or of a cell that
      their `with_activations` or `with_activation` returned; `Directions` of
      them for a Bidirectional.
    bias: False for a layer with use_bias=False.

  Returns:
    kernel [D, G·H], recurrent_kernel [H, G·H] and bias [G·H], or [2, 3H] of a
    `gru`, in the dtype of the params; those of both directions one after the
    other.

  Raises:
    ValueError: the params are of a cell that Keras does not have, do not fit
      each other, or have several dtypes; those of two directions are of
      different cells or input sizes; or bias is False, and a bias is not 0.
  """
  if isinstance(params, Directions):
    names = [type(direction).__name__ for direction in params]
    if len(set(names)) > 1:
      raise ValueError(
        f"both directions must have one cell, got {', '.join(names)}"
      )
    forward, backward = (to_keras(part, bias=bias) for part in params)
    _check_one_size(len(forward[0]), len(backward[0]))
    return [*forward, *backward]
  grus = gru.GRUParams, gru_reset_before.ResetBeforeGRUParams
  if not isinstance(params, (lstm.LSTMParams, rnn.RNNParams, *grus)):
    raise ValueError(
      "params must be of lstm, gru, gru_reset_before or rnn, which Keras has, "
      f"got {type(params).__name__}"
    )
  check_fit(params)
  params = copied_arrays(params)
  _check_one_dtype("params", params._asdict())
  w_x, w_h, b = (np.array(leaf) for leaf in params[:3])
  if isinstance(params, gru.GRUParams):
    b_n = np.array(params.b_n)
    b = np.stack([b, np.pad(b_n, (2 * len(b_n), 0))])
  if isinstance(params, grus):
    w_x, w_h, b = (_exchanged(array) for array in (w_x, w_h, b))
  if bias:
    return [w_x, w_h, b]
  check_no_bias("b", np.asarray(params.b))
  if isinstance(params, gru.GRUParams):
    check_no_bias("b_n", np.asarray(params.b_n))
  return [w_x, w_h]


def _check_one_dtype(what: str, arrays: Mapping[str, Array]) -> None:
  dtypes = {name: str(array.dtype) for name, array in arrays.items()}
  if len(set(dtypes.values())) > 1:
    raise ValueError(f"{what} must have one dtype, got {dtypes}")


def _check_one_size(forward: int, backward: int) -> None:
  if forward != backward:
    raise ValueError(
      "the kernels of both directions must have inputs of one size, "
      f"got {forward} and {backward}; stacked layers are converted one by one"
    )


def _activation(name: str, value: str | Activation) -> Activation:
  """Return the activation of a name, or the activation itself."""
  if isinstance(value, Activation):
    return value
  if not isinstance(value, str) or value not in ACTIVATIONS:
    names = ", ".join(ACTIVATIONS)
    raise ValueError(f"{name} must be {names} or an Activation, got {value!r}")
  return ACTIVATIONS[value]


def _from_direction(
  side: str,
  arrays: dict[str, Array],
  activations: tuple[Activation, Activation],
  reset_after: bool | None,
) -> tuple[Cell, Params]:
  """Return the cell and the params of one layer in one direction.

  Args:
    side: what the names of its arrays begin with in an error.
    arrays: by name.
    activations: the layer's activation, and its recurrent_activation.
    reset_after: that of a GRU, or None.
  """
  for name in NAMES[:2]:
    if name not in arrays:
      names = ", ".join(arrays) or "none"
      raise ValueError(f"{side}{name} is missing, got {names}")
  recurrent = arrays["recurrent_kernel"]
  hidden, columns = recurrent.shape if recurrent.ndim == 2 else (0, 0)
  if not hidden or columns not in (4 * hidden, 3 * hidden, hidden):
    raise ValueError(
      f"{side}recurrent_kernel must be [H, 4H], [H, 3H] or [H, H], "
      f"got {recurrent.shape}"
    )

  _check_one_dtype(f"{side}arrays", arrays)

  def check(name: str, *shape: int | str) -> Array:
    return check_shape(f"{side}{name}", arrays[name], *shape)

  cell: Cell
  w_x, w_h = check("kernel", "any", columns), recurrent
  candidate, gates = activations
  if columns == 3 * hidden:
    after = _reset_after(side, arrays.get("bias"), reset_after)
    rows = (2,) if after else ()
    b = check("bias", *rows, columns) if "bias" in arrays else None
    b = np.zeros((*rows, columns), w_x.dtype) if b is None else b
    w_x, w_h, b = (_exchanged(jnp.asarray(a)) for a in (w_x, w_h, b))
    if not after:
      cell = gru_reset_before.with_activations(gates, candidate)
      return cell, gru_reset_before.ResetBeforeGRUParams(w_x, w_h, b)
    split = 2 * hidden  # the candidate keeps both biases
    b, b_n = b[0].at[:split].add(b[1, :split]), b[1, split:]
    cell = gru.with_activations(gates, candidate)
    return cell, gru.GRUParams(w_x, w_h, b, b_n)
  b = check("bias", columns) if "bias" in arrays else None
  b = np.zeros(columns, w_x.dtype) if b is None else b
  copies = map(jnp.array, (w_x, w_h, b))
  if columns == hidden:
    return rnn.with_activation(candidate), rnn.RNNParams(*copies)
  cell = lstm.with_activations(gates, candidate, candidate)
  return cell, lstm.LSTMParams(*copies)


def _reset_after(
  side: str, bias: Array | None, reset_after: bool | None
) -> bool:
  """Return a GRU's reset_after, which its bias determines if it has one."""
  if reset_after not in (None, True, False):
    raise ValueError(
      f"reset_after must be True, False or None, got {reset_after!r}"
    )
  if bias is None:
    if reset_after is None:
      raise ValueError(
        f"{side}bias is missing: reset_after must say which GRU this is"
      )
    return reset_after
  found = len(bias.shape) == 2
  if reset_after not in (None, found):
    expected = "[2, 3H]" if reset_after else "[3H]"
    raise ValueError(
      f"{side}bias must be {expected} with reset_after={reset_after}, "
      f"got {bias.shape}"
    )
  return found


def _exchanged(x: Any) -> Any:
  """Return an array [..., 3H], of NumPy or JAX, with r and z exchanged."""
  order = np.arange(x.shape[-1]).reshape(3, -1)[[1, 0, 2]]
  return x[..., order.ravel()]
