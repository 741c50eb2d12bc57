"""`scanned`: the ScannedRNN of recurrent agents in Flax, computed by `unroll`.

Agents in the style of PureJaxRL and JaxMARL have a module ScannedRNN: Flax's
GRUCell under `nn.scan`, with a carry that is set to zero where an episode
begins. `scanned` makes a module that is called in the same way:

  ScannedRNN = scanned(gru)  # in place of the class

  carry = ScannedRNN.initialize_carry(batch_size, hidden_size)
  carry, ys = ScannedRNN()(carry, (ins, resets))  # in a compact method

The weights of gru, lstm and rnn are those of Flax's GRUCell, OptimizedLSTMCell
and SimpleCell, with their names, shapes and initial values, so that checkpoints
can be restored. Those of gru are named GRUCell_0. Where `initialize_carry` of a
class makes a cell, too, as in PureJaxRL, the checkpoint has GRUCell_1: `apply`
takes either name, and `init` makes GRUCell_0, with other initial values than
those of GRUCell_1, since Flax draws by name. The weights of any other cell are
one parameter, "cell", which holds what the cell's `init` returns. H is the size
of the carry's vector c, if the cell's zero state for that H has the shapes of
the carry; else the size of h. (A projected h is smaller than H.)

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax.cells import gru
  >>> ScannedRNN = scanned(gru)
  >>> carry = ScannedRNN.initialize_carry(3, 16)
  >>> ins, resets = jnp.ones((5, 3, 8), "float32"), jnp.zeros((5, 3))
  >>> (_, ys), variables = ScannedRNN().init_with_output(
  ...   jax.random.key(0), carry, (ins, resets)
  ... )
  >>> ys.shape, list(variables["params"])
  ((5, 3, 16), ['GRUCell_0'])
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from lstm_jax.cells import gru, lstm, rnn
from lstm_jax.cells.caching import cached
from lstm_jax.cells.cell import Cell
from lstm_jax.cells.checks import check_count
from lstm_jax.cells.lstm import LSTMState
from lstm_jax.cells.properties import cell_name, zero_state
from lstm_jax.interop.flax.weights import from_linen
from lstm_jax.sequence._unroll import unroll
from lstm_jax.sequence.arguments import check_steps

TYPE_OF_CELL: dict[Cell, Any] = {
  gru: linen.GRUCell,
  lstm: linen.OptimizedLSTMCell,
  rnn: linen.SimpleCell,
}
# The functions of a cell that `scanned` and the resets of `unroll` need.
PARTS = (
  "init",
  "initial_state",
  "project",
  "recur",
  "recur_backward",
  "parameter_gradients",
)


@cached  # the same class at every call, so that no program is compiled twice
def scanned(cell: Cell) -> Any:
  """Return ScannedRNN, a class of linen modules that run `unroll` with resets.

  The carry is an array h [..., H] if the cell's state is h alone, and (c, h) if
  the state is an `LSTMState`, as in Flax. Otherwise it is the cell's state.

  Args:
    cell: `gru`, `lstm`, or any object with the functions of `Cell`.

  Raises:
    ValueError: `unroll` cannot reset the cell, since it lacks a function or is
      not hashable.
  """
  missing = [name for name in PARTS if getattr(cell, name, None) is None]
  if missing:
    raise ValueError(
      "scanned must be given a cell whose state unroll can reset, such as "
      f"lstm_jax.gru, got {cell_name(cell)}, which has no {missing[0]}"
    )

  class ScannedRNN(linen.Module):
    """A cell unrolled over time; its state is reset where an episode begins."""

    @linen.compact
    def __call__(
      self, carry: Any, x: tuple[jax.Array, jax.Array]
    ) -> tuple[Any, jax.Array]:
      """Return (carry, ys): the carry after the last step, ys [T, ..., H].

      Args:
        carry: before the first step, as `initialize_carry` returns it.
        x: (ins, resets): inputs [T, ..., D], and resets [T, ...], of any dtype.
          Where a reset is not 0, the step starts from the zero state.

      Raises:
        ValueError: the carry is not one of this cell; ins and resets do not
          fit it or each other; or T is 0.
      """
      ins, resets = map(jnp.asarray, x)
      state, hidden_size = _state_and_size(cell, carry)
      _check(ins, resets, state)
      if cell in TYPE_OF_CELL:
        flax_type = TYPE_OF_CELL[cell]
        name = _name_of_weights(self.variables, flax_type)
        flax_cell = flax_type(hidden_size, name=name)
        if "params" not in flax_cell.variables:
          flax_cell(carry, ins[0])  # creates the weights
        params = from_linen(flax_cell.variables["params"])[1]
      else:
        sizes = ins.shape[-1], hidden_size
        params = self.param("cell", cell.init, *sizes, jnp.float32)
      ins = ins.astype(jnp.result_type(*jax.tree.leaves(params)))
      state, ys = unroll(cell, params, state, ins, reset=resets != 0)
      return _carry(state), ys

    @staticmethod
    def initialize_carry(
      batch_size: int | tuple[int, ...], hidden_size: int
    ) -> Any:
      """Return the carry of the zero state, in float32.

      Args:
        batch_size: B, or the sizes of several batch axes.
        hidden_size: H.

      Raises:
        ValueError: hidden_size is not an integer ≥ 1.
      """
      if isinstance(batch_size, int | np.integer):
        batch_size = (int(batch_size),)
      hidden_size = check_count("hidden_size", hidden_size)
      return _carry(zero_state(cell, batch_size, hidden_size))

  return ScannedRNN


def _name_of_weights(variables: Any, flax_type: Any) -> str | None:
  """Return GRUCell_1 if the weights have that name, or None for Flax's choice.

  They have it where `initialize_carry` made an unused GRUCell_0 before.
  """
  second = f"{flax_type.__name__}_1"
  return second if second in variables.get("params", {}) else None


def _carry(state: Any) -> Any:
  """Return the carry that holds a state: h, (c, h), or the state itself."""
  if isinstance(state, LSTMState):
    return state.c, state.h
  return state.h if len(state) == 1 else state


def _state_and_size(cell: Cell, carry: Any) -> tuple[Any, int]:
  """Return the state that a carry holds, and H.

  Raises:
    ValueError: the carry is not one of this cell.
  """
  size = _size_of_carry(carry)
  like: Any = jax.eval_shape(lambda: zero_state(cell, (), size))
  expected, found = _carry(like), type(carry).__name__
  structures: Any = [*map(jax.tree.structure, (carry, expected))]
  if structures[0] != structures[1]:
    kind = "an array" if len(like) == 1 else f"a {type(expected).__name__}"
    kind = "a tuple (c, h)" if isinstance(like, LSTMState) else kind
    raise ValueError(
      f"carry must be {kind}, as initialize_carry returns it, got {found}"
    )
  leaves = [*map(jnp.asarray, jax.tree.leaves(carry))]
  if isinstance(like, LSTMState):
    state: Any = LSTMState(*leaves[::-1])  # (h, c) from (c, h)
  else:
    state = type(like)(*leaves)
  hidden_size = _hidden_size(cell, state)
  if hidden_size is None:
    raise ValueError(
      "carry must have the shapes that initialize_carry gives it, got "
      f"{', '.join(str(leaf.shape) for leaf in leaves)}"
    )
  return state, hidden_size


def _size_of_carry(carry: Any) -> int:
  """Return a likely H for `zero_state`.

  Only the structure of that state is used, but the cell's `init` may refuse
  another H.
  """
  arrays = jax.tree.leaves((_may_have_size_h(carry), carry))
  sizes = (np.shape(x)[-1] for x in arrays if np.size(x) and np.ndim(x))
  return next(sizes, 1)


def _may_have_size_h(state: Any) -> list[Any]:
  """Return the arrays that may have the size H: c, if it is a vector, and h."""
  h: Any = getattr(state, "h", None)
  c = getattr(state, "c", h)
  return [c, h] if np.ndim(c) == np.ndim(h) else [h]


def _hidden_size(cell: Cell, state: Any) -> int | None:
  """Return the H with which the cell's state has these shapes, or None."""
  if not state.h.ndim:
    return None
  shapes = [x.shape for x in state]
  for size in (x.shape[-1] for x in _may_have_size_h(state)):
    like = jax.eval_shape(partial(zero_state, cell, state.h.shape[:-1], size))
    if [x.shape for x in like] == shapes:
      return size
  return None


def _check(ins: jax.Array, resets: jax.Array, state: Any) -> None:
  """Raise ValueError unless ins, resets and a state fit each other."""
  batch = state.h.shape[:-1]
  axes = ", ".join(["T", *map(str, batch)])
  if ins.ndim != len(batch) + 2 or ins.shape[1:-1] != batch:
    raise ValueError(
      f"ins must be [{axes}, D], to fit the carry, got {ins.shape}"
    )
  check_steps(ins.shape, ins.shape[0], "ins")
  if resets.shape != ins.shape[:-1]:
    expected = list(ins.shape[:-1])
    raise ValueError(f"resets must be {expected}, as ins, got {resets.shape}")
