"""A cell outside the package: a module that --cell and config.json name.

docs/own-cell.md explains the functions of a cell. A cell in the package has a
name of its own; any other is named by its module, as `import` would, and found
again on Python's path when its run is resumed, sampled or evaluated.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.trainer.files import read_json
from lstm_jax import unroll
from lstm_jax.cells.cell import Cell, CellModule
from lstm_jax.cells.made import MadeCell
from lstm_jax.cells.platform import traced_for
from lstm_jax.cells.properties import cell_name
from lstm_jax.cells.weight_checks import PARTS

FUNCTIONS = "init", *PARTS, "forward", "backward", "step"
# D and H of the step and sequences that are traced. The `init` of a cell may
# refuse the first, if D must be H, or H a multiple of a number of heads:
# 960 has 28 divisors.
SIZES = (3, 4), (960, 960)
NUM_STEPS = 5
RAISED = Exception, SystemExit  # whatever the code of a cell raises


@cache
def import_cell(name: str) -> Cell:
  """Return the module of that name, which is a cell.

  Raises:
    ValueError: there is no such module, it lies in the directory of a run, it
      fails to be imported, it is not a cell, or it lacks a gradient.
  """
  if not all(part.isidentifier() for part in name.split(".")):
    raise ValueError("that is not a name of a module")
  try:
    run = _find_run(name)
    cell: Any = None if run else importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None:  # raised by the module itself, with a message
      raise ValueError(f"its import raises {_in_a_line(error)}") from None
    raise ValueError(
      f"there is no module {error.name} on Python's path"
    ) from None
  except RAISED as error:
    raise ValueError(f"its import raises {_in_a_line(error)}") from None
  if run:
    raise ValueError(f"its code lies in {run}, the directory of a run")
  missing = [f for f in FUNCTIONS if not callable(getattr(cell, f, None))]
  if missing:
    raise ValueError(f"it has no function {', '.join(missing)}")
  sizes = _sizes(cell)
  try:
    with traced_for("cpu"):  # else JAX would start a device to know its kind
      before, after = _trace_step(cell, sizes)
  except RAISED as error:
    raise ValueError(f"its step raises {_in_a_line(error)}") from None
  if before != after or "h" not in before:
    raise ValueError(
      f"its step must return a state like the previous state, with h, got "
      f"{after} for {before}"
    )
  gradients = {"its step": _step_gradient, "a sequence": _sequence_gradient}
  if getattr(cell, "takes_tokens", False):
    gradients["a sequence of tokens (takes_tokens)"] = _token_gradient
  for what, gradient in gradients.items():
    try:
      with traced_for("cpu"):
        jax.eval_shape(partial(gradient, cell, sizes), _key())
    except RAISED as error:
      message = f"the gradient of {what} raises {_in_a_line(error)}"
      raise ValueError(message) from None
  return cell


def shapes_of(cell: Any) -> tuple[Any, Any]:
  """Return weights and a zero state of a cell, as shapes."""
  arguments = partial(_arguments, cell, _sizes(cell))
  params, state, _ = jax.eval_shape(arguments, _key())
  return params, state


def init_shapes(cell: Any, init: Callable[[jax.Array], Any]) -> Any:
  """Return the shapes of init(key), the weights of this cell or its model.

  Raises:
    ValueError: `init` does, or the `init` of a cell outside the package fails,
      as it may where it refuses the sizes of the model.
  """
  try:
    return jax.eval_shape(init, _key())
  except RAISED as error:
    if isinstance(error, ValueError) or isinstance(cell, CellModule | MadeCell):
      raise
    raise ValueError(
      f"init of the cell {cell_name(cell)} raises {_in_a_line(error)}"
    ) from error


def _find_run(name: str) -> Path | None:
  """Return the run directory in which a module lies; None if it lies in none.

  A run that someone else has made could bring along the code that its
  config.json names. Its directory may be a package (which needs no __init__.py)
  or the entry of Python's path in which the module lies, such as the current
  directory, or a directory around that entry.
  """
  if name in sys.modules:
    return None  # no code is run
  parts = name.split(".")
  for count in range(1, len(parts) + 1):
    # Imports the packages around this one, which are no runs.
    spec = importlib.util.find_spec(".".join(parts[:count]))
    if spec is None:
      return None
    places = [*map(Path, spec.submodule_search_locations or ())]
    if count == 1:  # also the entry of Python's path, and those around it
      files = [Path(spec.origin)] if spec.has_location and spec.origin else []
      places += [p for place in places or files for p in place.parents]
    for place in places:
      if _is_run(place):
        return place
  return None


def _is_run(directory: Path) -> bool:
  """Return whether a directory has a config.json that names a cell."""
  try:  # not by `run_dir`, which imports this module
    record = read_json(directory / "config.json")
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(record, dict) and "cell" in record


def _sizes(cell: Any) -> tuple[int, int]:
  """Return the first of SIZES for which the cell makes weights and a state."""
  for sizes in SIZES:
    try:
      jax.eval_shape(partial(_arguments, cell, sizes), _key())
    except RAISED:
      continue
    return sizes
  return SIZES[0]


def _trace_step(
  cell: Any, sizes: tuple[int, int]
) -> tuple[dict[str, str], dict[str, str]]:
  """Return the dtype and shape of each part of a state and of the next one.

  Nothing is computed: JAX must not start a device yet.
  """

  def run(key: jax.Array) -> tuple[Any, Any]:
    params, state, x = _arguments(cell, sizes, key)
    return state, cell.step(params, state, x)

  before, after = (
    {name: f"{part.dtype}{list(part.shape)}" for name, part in s.items()}
    for s in (state._asdict() for state in jax.eval_shape(run, _key()))
  )
  return before, after


def _step_gradient(cell: Any, sizes: tuple[int, int], key: jax.Array) -> Any:
  """Return the gradient of the sum of h after a step, w.r.t. the weights."""
  return jax.grad(lambda *each: cell.step(*each).h.sum())(
    *_arguments(cell, sizes, key)
  )


def _sequence_gradient(
  cell: Any, sizes: tuple[int, int], key: jax.Array
) -> Any:
  """Return the gradients of the sum of hs, w.r.t. weights and inputs."""
  params, state, x = _arguments(cell, sizes, key)
  xs = jnp.zeros((NUM_STEPS, *x.shape), x.dtype)
  # Programs reset and repeat rows: all of the state must have the batch axes.
  reset = jnp.zeros(xs.shape[:-1], bool)
  return jax.grad(
    lambda p, xs: unroll(cell, p, state, xs, reset=reset)[1].sum(), (0, 1)
  )(params, xs)


def _token_gradient(cell: Any, sizes: tuple[int, int], key: jax.Array) -> Any:
  """Return the gradient of the sum of hs, w.r.t. the weights."""
  params, state, x = _arguments(cell, sizes, key)
  tokens = jnp.zeros((NUM_STEPS, len(x)), jnp.int32)
  return jax.grad(lambda p: unroll(cell, p, state, tokens)[1].sum())(params)


def _arguments(
  cell: Any, sizes: tuple[int, int], key: jax.Array
) -> tuple[Any, Any, jax.Array]:
  """Return weights of D and H, the zero state and inputs of a step (B 2)."""
  params = cell.init(key, *sizes, jnp.float32)
  x = jnp.zeros((2, sizes[0]), jnp.float32)
  return params, cell.initial_state(params, (2,)), x


def _key() -> Any:
  """Return the shape of a key."""
  return jax.eval_shape(jax.random.key, 0)


def _in_a_line(error: BaseException) -> str:
  text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
  return text.removesuffix(":")  # of an error without a message
