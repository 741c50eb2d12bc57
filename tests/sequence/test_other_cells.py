"""Cells from outside the package: any object with the functions of `Cell`."""

import inspect
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, Step, init_stack, unroll_stack
from tests.contract import REPRESENTATIVE_CELLS
from tests.draws import B, D, H, T, arguments, worst
from tests.gradients import value_and_gradient


class CellOfFunctions(NamedTuple):
  init: object
  initial_state: object
  project: object
  recur: object
  recur_backward: object
  parameter_gradients: object
  forward: object
  backward: object
  step: object
  takes_tokens: bool = True
  linear_recurrence: bool = False


def module_outside(cell):
  """Return a module that executes the cell's source, as a user's file would."""
  module = ModuleType("my_cell")
  exec(inspect.getsource(cell), module.__dict__)
  return module


def tuple_of_functions(cell):
  linear = getattr(cell, "linear_recurrence", False)
  functions = (getattr(cell, f) for f in CellOfFunctions._fields[:-1])
  return CellOfFunctions(*functions, linear)


@pytest.mark.everyday(1)
@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("make", [module_outside, tuple_of_functions])
def test_any_object_with_the_functions_is_a_cell(cell, make, key):
  other = make(cell)
  expected = value_and_gradient(cell, arguments(cell, key))
  for adjoint in (Explicit(), Explicit(chunk=2), Step(), Autodiff()):
    found = value_and_gradient(other, arguments(other, key), adjoint=adjoint)
    # By leaves: the params of `module_outside` have a class of their own.
    leaves = map(jax.tree.leaves, (found, expected))
    assert worst(*leaves) < 1e-12
  params = init_stack((other, cell), key, D, H)
  xs = jnp.ones((T, B, D), jnp.float32)
  assert unroll_stack((other, cell), params, None, xs)[1].shape[:2] == (T, B)
