"""Which terms a backward has, and what an error planted in one changes."""

import sys

import jax.numpy as jnp
import pytest

from lstm_jax import lstm, rnn
from lstm_jax.cells import RELU, activations
from lstm_jax.sequence import wrappers
from lstm_jax.testing import plant, terms
from tests.contract import TABLE
from tests.draws import B, D, H
from tests.testing.sources import module_of


def test_the_terms_of_the_lstm_are_cotangents_and_local_gradients():
  names = {term for term in terms(TABLE["lstm"].cell) if "[" not in term}
  local_gradients = "dactivation dnext_da dh_dc"
  cotangents = "dc_sum da dh dc dx dw_x dw_h db"
  assert names == {*local_gradients.split(), *cotangents.split()}


def test_an_unknown_term_is_an_error_that_lists_the_terms():
  with pytest.raises(ValueError, match="no term 'dq'; it has dh_da, da, dh, "):
    plant(TABLE["rnn"].cell, "dq")


def test_each_assignment_to_a_name_is_a_term(tmp_path):
  source = """
def recur_backward(params, gates, residuals, d_state):
  da = db = gates + d_state + residuals
  return step_back(da) + db


def step_back(d):
  da = d + d
  return da
"""
  module = module_of(tmp_path, "chained", source)
  of_db = "db", "db[0]", "db[1]", "db[2]"  # the whole, and its summands
  of_da = "da#1", "da#1[0]", "da#1[1]", "da#1[2]", "da#2", "da#2[0]", "da#2[1]"
  assert {*terms(module)} == {*of_da, *of_db}
  x = jnp.ones(())
  assert module.recur_backward(None, x, x, x) == 6 + 3
  for term, expected in (
    ("da#1", (2 * 9) + 3),
    ("db", (2 * 3) + 9),  # da and db are two names of one array
    ("da#1[2]", (2 * 5) + 5),  # da and db are 1 + 1 + 3
    ("da#2", (3 * 6) + 3),
    ("da#2[0]", (3 + 1) * 3 + 3),
  ):
    planted = plant(module, term, 3.0)
    assert planted.recur_backward(None, x, x, x) == expected


def test_terms_are_numbered_by_their_lines(tmp_path):
  source = """
def step_back(d):
  da = 2.0 * d
  return da


def recur_backward(params, gates, residuals, d_state):
  da = 1.0 + step_back(d_state)
  da -= 3.0 * d_state
  return da
"""
  module = module_of(tmp_path, "helper_first", source)
  of_2, of_3 = (tuple(f"da#{k}{i}" for i in ("", "[0]", "[1]")) for k in (2, 3))
  assert terms(module) == ("da#1", *of_2, *of_3)
  for term, expected in (
    ("da#1", (1 + 20) - 3),
    ("da#2", 10 * (1 + 2) - 3),
    ("da#3", 10 * (1 + 2 - 3)),
    ("da#3[1]", (1 + 2) - 30),
  ):
    planted = plant(module, term, 10.0)
    assert planted.recur_backward(None, None, None, jnp.ones(())) == expected


def test_a_term_of_a_made_cell_is_scaled_by_the_given_factor():
  cell = rnn.with_activation(RELU)
  params = rnn.RNNParams(jnp.ones((D, H)), jnp.ones((H, H)), jnp.ones(H))
  arguments = params, jnp.ones((1, B, D)), jnp.ones((1, B, H)), ()
  das = jnp.ones((1, B, H))
  expected, _ = cell.parameter_gradients(*arguments, das)
  found, _ = plant(cell, "db", 3.0).parameter_gradients(*arguments, das)
  assert (found.b == 3 * expected.b).all()
  assert (found.w_h == expected.w_h).all()


def test_assignments_with_a_type_or_an_addition_are_terms(tmp_path):
  source = """
def recur_backward(params, gates, residuals, d_state):
  da: float = gates * d_state
  dh = residuals + d_state
  dh += da * residuals
  dc: float
  dw = [dh]
  dw[0] += 0
  return dh
"""
  module = module_of(tmp_path, "typed", source)
  of_dh = "dh#1", "dh#1[0]", "dh#1[1]", "dh#2", "dh#2[0]", "dh#2[1]"
  assert terms(module) == ("da", *of_dh, "dw")
  x = jnp.float64(2.0)
  arguments = None, x, x + 1, x + 2
  assert module.recur_backward(*arguments) == (3 + 4) + 2 * 4 * 3
  for term, expected in (
    ("da", (3 + 4) + 10 * 2 * 4 * 3),
    ("dh#1", 10 * (3 + 4) + 2 * 4 * 3),
    ("dh#2", 10 * ((3 + 4) + 2 * 4 * 3)),
  ):
    planted = plant(module, term, 10.0)
    assert planted.recur_backward(*arguments) == expected


def test_targets_of_a_tuple_are_terms_and_elements_of_a_tree_are_not(tmp_path):
  source = """
def recur_backward(params, gates, residuals, d_state):
  dw = {}
  dw["x"] = gates * d_state
  dw[1] = gates + d_state
  first, *das = 1.0, 2.0, 3.0
  *rest, dlast = 1.0, 2.0, 3.0
  dh, *others, (dc, dn) = 1.0, 2.0, (3.0, 4.0)  # dc, dn: nested, no terms
  return first, das, rest, dlast, dh, others
"""
  module = module_of(tmp_path, "targets", source)
  assert terms(module) == ("dw", "das", "dlast", "dh")
  for term, expected in (
    ("das", (1, [20, 30], [1, 2], 3, 1, [2])),
    ("dlast", (1, [2, 3], [1, 2], 30, 1, [2])),
    ("dh", (1, [2, 3], [1, 2], 3, 10, [2])),
  ):
    planted = plant(module, term, 10.0)
    assert planted.recur_backward(None, 1.0, None, 1.0) == expected


def test_a_variable_that_is_assigned_together_with_others_is_scaled_alone(
  tmp_path,
):
  source = """
def recur_backward(params, gates, residuals, d_state):
  both = da, db = gates, d_state
  dh = [dc, *dx] = gates, d_state
  return both, da, db, dh, dc, dx
"""
  module = module_of(tmp_path, "together", source)
  assert terms(module) == ("da", "db", "dh", "dc", "dx")
  for term, expected in (
    ("da", ((1, 2), 10, 2, (1, 2), 1, [2])),
    ("db", ((1, 2), 1, 20, (1, 2), 1, [2])),
    ("dh", ((1, 2), 1, 2, (10, 20), 1, [2])),
    ("dc", ((1, 2), 1, 2, (1, 2), 10, [2])),
    ("dx", ((1, 2), 1, 2, (1, 2), 1, [20])),
  ):
    planted = plant(module, term, 10.0)
    assert planted.recur_backward(None, 1.0, None, 2.0) == expected


def test_concatenated_arrays_are_terms_however_they_are_written(tmp_path):
  source = """
import jax

def recur_backward(params, gates, residuals, d_state):
  [das, dn] = (gates,), d_state
  da = jax.numpy.concatenate([*das, dn])
  dx = jax.numpy.concatenate(axis=0, arrays=(da, *das))
  return dx
"""
  module = module_of(tmp_path, "concatenated", source)
  parts = "da", "da[0]", "da[1]", "dx", "dx[0]", "dx[1]"
  assert terms(module) == ("das", "dn", *parts)
  results = [212, 121, 221, 211, 121, 222, 221, 112]  # the digits are dx
  for term, expected in zip(terms(module), results, strict=True):
    backward = plant(module, term, 2.0).recur_backward
    dx = backward(None, jnp.ones(1), None, jnp.ones(1))
    assert dx @ jnp.array([100.0, 10.0, 1.0]) == expected


def test_a_term_may_be_a_number_instead_of_an_array(tmp_path):
  source = """
def recur_backward(params, gates, residuals, d_state):
  dh = 1 - gates
  return dh
"""
  module = module_of(tmp_path, "of_a_number", source)
  assert (
    plant(module, "dh[0]", 3.0).recur_backward(None, 0.5, None, None) == 2.5
  )


def test_a_function_within_another_has_its_terms_once(tmp_path):
  source = """
def recur_backward(params, gates, residuals, d_state):
  def inner(x):
    da = x * d_state
    return da
  return inner(gates)
"""
  module = module_of(tmp_path, "nested", source)
  assert terms(module) == ("da",)
  assert plant(module, "da", 3.0).recur_backward(None, 2.0, None, 5.0) == 30


def test_wrapped_cells_and_modules_without_source_are_refused():
  wrapped = wrappers.masked(TABLE["lstm"].cell)
  message = "^a cell must be a module or a MadeCell, got Wrapped$"
  for function in (terms, lambda cell: plant(cell, "da")):
    with pytest.raises(TypeError, match=message):
      function(wrapped)
    with pytest.raises(TypeError, match="built-in module"):
      function(sys)


@pytest.mark.parametrize("cell", [lstm, rnn.with_activation(RELU)])
def test_a_copy_is_refused_as_it_would_lose_its_error(cell):
  for function in (terms, lambda cell: plant(cell, "dh")):
    with pytest.raises(TypeError, match=r"must not be a copy from plant$"):
      function(plant(cell, "da"))


def test_a_module_without_a_backward_has_no_terms():
  assert terms(activations) == ()
  with pytest.raises(ValueError, match=r"has no term 'da'; it has none$"):
    plant(activations, "da")
