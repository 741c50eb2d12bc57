"""An error in any term of a backward pass is caught."""

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, gradcheck, unroll
from lstm_jax.cells import affine
from lstm_jax.language import loss
from lstm_jax.testing import plant, terms
from tests.contract import NAMES, PLANTS, TABLE
from tests.draws import B, D, H, arguments, normal_like
from tests.gradients import planted_error

DIFFERENCES = {"relu_rnn": {"epsilon": 1e-6}}  # a step that crosses no kink


def check(cell, key, **options):
  """Check a cell unrolled for three steps, between which d_state passes."""
  params, state, xs = arguments(cell, key, steps=3)
  x = {"params": params, "state": state, "xs": xs}

  def run(adjoint):
    return lambda x: unroll(
      cell, x["params"], x["state"], x["xs"], adjoint=adjoint
    )

  return gradcheck(run(Explicit()), run(Autodiff()), x, key, **options)


@pytest.mark.everyday(1)
@NAMES
def test_every_cell_passes(name, key):
  # At the default step of 1e-3, the differences of a Mogrifier, whose rounds
  # are nested, are wrong by 1.2e-6.
  options = {"epsilon": 5e-4} | DIFFERENCES.get(name, {})
  report = check(TABLE[name].cell, key, **options)
  assert report.passes()
  for row in report.tensors:
    assert row.explicit_central.coordinates == row.size
    assert row.explicit_directional.coordinates == 4  # directions, by default
    assert row.autodiff_central.relative < 1e-6
    assert row.autodiff_directional.relative < 1e-6


@pytest.mark.everyday(1)
@NAMES
def test_without_a_planted_error_the_gradient_is_right(name, key):
  cell = TABLE[name].cell
  assert planted_error(cell, cell, key) < 1e-12


@PLANTS
def test_every_planted_error_is_caught(name, term, key):
  cell = TABLE[name].cell
  assert planted_error(cell, plant(cell, term), key) > 1e-4


def test_planted_errors_do_not_pass(key):
  """Terms of three kinds: of a state, of a pre-activation, of the weights."""
  for term in ("dc", "da[1]", "dw_h"):
    cell = plant(TABLE["lstm"].cell, term)
    report = check(cell, key, max_coordinates=0, num_directions=0)
    assert report.value <= 1e-12  # the forward is unchanged
    assert not report.passes()
    assert max(t.explicit_autodiff.relative for t in report.tensors) > 1e-4


def test_differences_alone_catch_a_planted_error(key):
  report = check(plant(TABLE["lstm"].cell, "dc_sum[1]"), key)
  assert all(t.explicit_central.relative > 1e-4 for t in report.tensors)
  assert all(t.explicit_directional.relative > 1e-4 for t in report.tensors)
  assert all(t.autodiff_central.relative < 1e-6 for t in report.tensors)
  assert all(t.autodiff_directional.relative < 1e-6 for t in report.tensors)


OF_TOKENS = {"dw_tokens", "db_tokens"}


@pytest.mark.parametrize("term", sorted({*terms(affine)} - OF_TOKENS))
def test_a_planted_error_in_the_readout_is_caught(term, key):
  planted = plant(affine, term)
  x = normal_like(key, tuple(np.zeros(s) for s in ((B, D), (D, H), (H,))))
  report = gradcheck(
    lambda x: planted.linear(*x), lambda x: planted.affine(*x), x, key
  )
  wrong = {"dx": "0", "dw": "1", "db": "2"}[term]  # the place in x
  assert_error_is_in(wrong, report)


def assert_error_is_in(wrong, report):
  """Check that one tensor alone is wrong, by a factor of 1.01."""
  for row in report.tensors:
    expected = 0.01 / 1.01 if row.name == wrong else 0
    assert abs(row.explicit_autodiff.relative - expected) < 1e-12


@pytest.mark.parametrize("term", sorted(OF_TOKENS))
def test_a_planted_error_in_the_lookup_of_tokens_is_caught(term, key):
  planted = plant(affine, term)
  w, b = normal_like(key, (np.zeros((D, H)), np.zeros(H)))
  tokens = jnp.array([0, 3, 1])  # fewer than D: db is not computed from dW
  report = gradcheck(
    lambda x: planted.linear(tokens, *x),
    lambda x: planted.affine(tokens, *x),
    (w, b),
    key,
  )
  wrong = {"dw_tokens": "0", "db_tokens": "1"}[term]  # the place in (w, b)
  assert_error_is_in(wrong, report)


def test_a_planted_error_in_the_loss_is_caught(key):
  targets = jnp.array([0, 3, 1])
  for module, passes in ((loss, True), (plant(loss, "dlogits"), False)):
    report = gradcheck(
      lambda y, m=module: m.cross_entropy(y, targets),
      lambda y, m=module: m.forward(y, targets)[0],
      normal_like(key, np.zeros((B, D))),
      key,
    )
    assert report.passes() == passes
