"""Errors planted in the kernels are caught by the comparison with the scan."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.sequence import fused
from lstm_jax.testing import plant, terms
from tests.interpreting import NEEDS_KERNELS
from tests.mosaic_gpu.layers import (
  ALL_CELLS,
  CELLS,
  FLOAT32,
  agree,
  draw,
  errors,
  kernel_results,
  results,
)

pytestmark = [NEEDS_KERNELS, pytest.mark.usefixtures("threads")]

# As `lstm_jax.testing.terms` names them: dan#2 is the second assignment of dan.
# From it on, they are of the GRU's `parameter_gradients`, the products after
# the kernel; the LSTM and the RNN call that function of their cells.
TERMS = {
  "lstm": ("dc_sum[0]", "dc_sum[1]", "dai", "daf", "dag", "dao", "dc"),
  "gru": (
    *("dh_dan", "dh_daz", "dh_dar", "dar", "daz", "dh"),
    *("dan#1", "ds#1", "dan#2", "ds#2"),
    *("da[0]", "da[1]", "du[0]", "du[1]", "dx", "dw_x", "dw_h", "db"),
  ),
  "rnn": ("da",),
}
PLANTS = [(name, term) for name in TERMS for term in TERMS[name]]
STEPS = 3  # the fewest with which every wrong kernel below is caught


def arguments_and_options(name):
  """Return (params, state, xs), and options: mask, reset and reverse."""
  arguments = draw(CELLS[name], steps=STEPS)
  rng = np.random.default_rng(4)
  step_shape = arguments[2].shape[:2]
  mask = jnp.asarray(rng.random(step_shape) < 0.6)
  reset = jnp.asarray(rng.random(step_shape) < 0.4)
  return arguments, {"mask": mask, "reset": reset, "reverse": True}


@cache
def expected(name, featured):
  arguments, options = arguments_and_options(name)
  return results(None, CELLS[name], arguments, **(options if featured else {}))


def found(name, featured):
  arguments, options = arguments_and_options(name)
  return kernel_results(CELLS[name], arguments, **(options if featured else {}))


@ALL_CELLS
def test_nothing_planted_is_no_error(name):
  # The LSTM with the options of test_a_wrong_kernel_is_caught, the others with
  # none, as in test_a_scaled_term_of_a_backward_is_caught.
  featured = name == "lstm"
  assert agree(found(name, featured), expected(name, featured))


@pytest.mark.parametrize(("name", "term"), PLANTS)
def test_a_scaled_term_of_a_backward_is_caught(name, term, monkeypatch):
  module = fused._time_step(CELLS[name])
  planted = plant(module, term)
  monkeypatch.setattr(fused, "_time_step", lambda cell: planted)
  error = errors(found(name, False), expected(name, False))
  assert np.max(of_outputs(error)) <= FLOAT32  # the forward is unchanged
  assert max(error.values()) > 1e-4


def of_outputs(error):
  """Return the errors of what `unroll` returns, without those of cotangents."""
  return [e for place, e in error.items() if place.startswith("[0]")]


def test_every_term_is_planted():
  for name, planted in TERMS.items():
    every = terms(fused._time_step(CELLS[name]))
    # Of these, each part is planted instead of the whole.
    parted = {term.partition("[")[0] for term in every if "[" in term}
    assert set(planted) == set(every) - parted


def change_arguments(monkeypatch, module, function, change):
  """Have a function of a module called with other arguments."""
  original = getattr(module, function)
  monkeypatch.setattr(
    module, function, lambda *args: original(*change(list(args)))
  )


def masks_ignored(monkeypatch):
  from lstm_jax.mosaic_gpu import states

  monkeypatch.setattr(states, "unless_masked", lambda state, other, flag: state)


def resets_ignored(monkeypatch):
  from lstm_jax.mosaic_gpu import states

  monkeypatch.setattr(states, "unless_reset", lambda state, flag: state)


def flags_ignored_in_the_backward(monkeypatch):
  from lstm_jax.mosaic_gpu import backward

  def change(args):
    *others, _ = args  # the flags are the last argument
    return [*others, None]

  change_arguments(monkeypatch, backward, "backward_kernel", change)


def direction_ignored_in_the_backward(monkeypatch):
  from lstm_jax.mosaic_gpu import backward

  def change(args):
    time_step, plan, _, *others = args
    return [time_step, plan, False, *others]

  change_arguments(monkeypatch, backward, "backward_kernel", change)


def cotangent_of_the_last_h_ignored(monkeypatch):
  from lstm_jax.mosaic_gpu import backward

  def change(args):
    *others, d_last, flags = args
    return [*others, d_last._replace(h=jnp.zeros_like(d_last.h)), flags]

  change_arguments(monkeypatch, backward, "backward_kernel", change)


WRONG = (
  masks_ignored,
  resets_ignored,
  flags_ignored_in_the_backward,
  direction_ignored_in_the_backward,
  cotangent_of_the_last_h_ignored,
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_kernel_is_caught(wrong, monkeypatch):
  wrong(monkeypatch)
  error = errors(found("lstm", True), expected("lstm", True))
  assert max(error.values()) > 1e-2


def test_c_saved_after_its_step_is_caught(monkeypatch):
  from lstm_jax.mosaic_gpu import lstm

  forward = lstm.forward

  def saves_c_after(*args):
    state, saved = forward(*args)
    return state, saved._replace(c=state.c)

  monkeypatch.setattr(lstm, "forward", saves_c_after)
  error = errors(found("lstm", False), expected("lstm", False))
  assert np.max(of_outputs(error)) <= FLOAT32
  assert max(error.values()) > 1e-2
