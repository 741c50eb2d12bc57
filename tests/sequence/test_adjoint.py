"""The `adjoint` argument: its values, its errors, and where it is passed."""

import inspect

import jax
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Explicit,
  Step,
  lstm,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.sequence import UnrollOptions
from tests.draws import arguments


def test_equal_adjoints_are_equal_cache_keys():
  assert Explicit("recompute", 3) == Explicit(residuals="recompute", chunk=3)
  adjoints = Explicit(), Explicit("gates", None), Step(), Step(), Autodiff()
  assert len(set(adjoints)) == 3


def test_residuals_are_one_of_two_policies():
  message = "^residuals must be gates or recompute, got 'states'$"
  with pytest.raises(ValueError, match=message):
    Explicit(residuals="states")


@pytest.mark.parametrize("chunk", [2.5, True, "8", 0])
def test_a_chunk_is_a_whole_number_of_steps(chunk):
  message = f"^chunk must be an integer ≥ 1, got {chunk!r}$"
  with pytest.raises(ValueError, match=message):
    Explicit(chunk=chunk)
  # An int8 would overflow where the chunk is multiplied, such as at 2 · 100.
  assert type(Explicit(chunk=np.int8(100)).chunk) is int


@pytest.mark.parametrize("wrong", ["autodiff", Explicit, None, 3])
def test_anything_but_an_adjoint_is_an_error(wrong, key):
  params, state, xs = arguments(lstm, key)
  with pytest.raises(ValueError, match=r"adjoint must be Explicit\(\), Step\("):
    unroll(lstm, params, state, xs, adjoint=wrong)


@pytest.mark.parametrize("option", [{"chunk": 2}, {"residuals": "gates"}])
@pytest.mark.parametrize("adjoint", [Step, Autodiff])
def test_only_explicit_takes_residuals_and_a_chunk(adjoint, option):
  Explicit(**option)
  with pytest.raises(TypeError, match=next(iter(option))):
    adjoint(**option)


def test_shared_options_are_those_of_unroll():
  names = UnrollOptions.__annotations__
  parameters = inspect.signature(unroll).parameters
  for name, annotation in names.items():
    assert parameters[name].annotation == annotation
  # `unroll_both` and `unroll_stack` have parameters of their own for these, or
  # do not take them.
  own = {"cell", "params", "state", "xs", "reverse", "zoneout", "state_dropout"}
  assert set(names) == set(parameters) - own
  for function in (unroll_both, unroll_stack):  # take the names as **options
    assert not set(names) & set(inspect.signature(function).parameters)


def test_an_unknown_option_is_an_error(key):
  params, state, xs = arguments(lstm, key)
  with pytest.raises(TypeError, match="unexpected keyword argument 'masks'"):
    unroll_stack(lstm, (params,), (state,), xs, masks=None)


@pytest.mark.parametrize(
  "adjoint", [Explicit(), Explicit(chunk=2), Step(), Autodiff()], ids=str
)
def test_a_stack_passes_its_adjoint_to_its_layers(adjoint, key):
  params, state, xs = arguments(lstm, key)

  def program(run):
    return jax.make_jaxpr(jax.grad(lambda p: run(p)[1].sum()))(params)

  one = program(lambda p: unroll(lstm, p, state, xs, adjoint=adjoint))
  stack = program(
    lambda p: unroll_stack(lstm, (p,), (state,), xs, adjoint=adjoint)
  )
  assert str(one) == str(stack)
