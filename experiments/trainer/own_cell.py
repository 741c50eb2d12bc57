"""A cell outside the package: a module that --cell and config.json name.

docs/own-cell.md explains the functions of a cell. A cell in the package has a
name of its own; any other is named by its module, as `import` would, and found
again on Python's path when its run is resumed, sampled or evaluated.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.trainer.files import read_json
from lstm_jax import unroll
from lstm_jax.cells.cell import Cell
from lstm_jax.cells.platform import traced_for
from lstm_jax.cells.weight_checks import PARTS

FUNCTIONS = "init", *PARTS, "forward", "backward", "step"
# D and H that are traced. A cell may refuse the first, if D must be H, or H a
# multiple of a number of heads: 960 has 28 divisors.
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
  try:
    run = _find_run(name)
    cell: Any = None if run else importlib.import_module(name)
  except ModuleNotFoundError as error:
    missing = error.name or error
    raise ValueError(f"there is no module {missing} on Python's path") from None
  except RAISED as error:
    raise ValueError(f"its import raises {_in_a_line(error)}") from None
  if run:
    raise ValueError(f"its code lies in {run}, the directory of a run")
  lacking = [f for f in FUNCTIONS if not callable(getattr(cell, f, None))]
  if lacking:
    raise ValueError(f"it has no function {', '.join(lacking)}")
  try:
    with traced_for("cpu"):  # else JAX would start a device to know its kind
      try:
        shapes = init_shapes(partial(_arguments, cell, SIZES[0]))
      except RAISED:
        shapes = init_shapes(partial(_arguments, cell, SIZES[1]))
      jax.eval_shape(jax.grad(partial(_loss, cell), (0, 2)), *shapes)
  except RAISED as error:
    what = "its step or gradient raises"
    raise ValueError(f"{what} {_in_a_line(error)}") from None
  return cell


def init_shapes(init: Callable[[jax.Array], Any]) -> Any:
  """Return the shapes of init(key), such as weights; no device is started."""
  return jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))


def _arguments(cell: Any, sizes: tuple[int, int], key: jax.Array) -> Any:
  """Return weights of D and H, the zero state and inputs of a step (B 2)."""
  params = cell.init(key, *sizes, jnp.float32)
  x = jnp.zeros((2, sizes[0]), jnp.float32)
  return params, cell.initial_state(params, (2,)), x


def _loss(cell: Any, params: Any, state: Any, x: jax.Array) -> jax.Array:
  """Return a scalar of a step and of sequences, whose gradient is traced."""
  after = cell.step(params, state, x)
  before_is, after_is = (
    {name: f"{a.dtype}{list(a.shape)}" for name, a in s._asdict().items()}
    for s in (state, after)
  )
  if before_is != after_is:
    raise ValueError(
      "a step must return a state like the previous state, got "
      f"{after_is} for {before_is}"
    )
  xs = jnp.broadcast_to(x, (NUM_STEPS, *x.shape))
  # Programs reset and repeat rows: all of the state must have the batch axes.
  reset = jnp.zeros(xs.shape[:-1], bool)
  _, hs = unroll(cell, params, state, xs, reset=reset)
  if getattr(cell, "takes_tokens", False):
    hs += unroll(cell, params, state, jnp.zeros(hs.shape[:2], jnp.int32))[1]
  return after.h.sum() + hs.sum()


def _find_run(name: str) -> Path | None:
  """Return the run directory in which a module lies; None if it lies in none.

  A run that someone else has made could bring along the code that its
  config.json names: in a package (which needs no __init__.py), or in an entry
  of Python's path, such as the current directory, or a directory around it.
  """
  parts = [] if name in sys.modules else name.split(".")
  for count in range(1, len(parts) + 1):
    # Imports the packages around this one, which are no runs.
    spec = importlib.util.find_spec(".".join(parts[:count]))
    if spec is None:
      break
    files = [spec.origin] if spec.has_location and spec.origin else []
    for place in map(Path, [*files, *(spec.submodule_search_locations or ())]):
      for directory in (place, *place.parents):
        with suppress(OSError, ValueError, TypeError):  # it has no such file
          if "cell" in read_json(directory / "config.json"):
            return directory
  return None


def _in_a_line(error: BaseException) -> str:
  text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
  return text.removesuffix(":")  # of an error without a message
