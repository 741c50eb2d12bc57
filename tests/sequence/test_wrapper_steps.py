"""Steps of a cell with masks, resets, zoneout or dropout, some in `unroll`."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, Step, lstm, unroll
from lstm_jax.cells.cell import one_step
from lstm_jax.sequence import wrappers
from lstm_jax.testing import gradcheck, plant, terms
from tests.contract import REPRESENTATIVE_CELLS
from tests.draws import B, H, T, arguments, weighed, worst
from tests.sequence.options import FEATURES, MASK, RESET, zoneout_rates
from tests.sequence.test_other_cells import CellOfFunctions


@REPRESENTATIVE_CELLS
def test_zoneout_of_everything_leaves_the_state_unchanged(cell, key):
  params, state, xs = arguments(cell, key)
  every = type(state)(*(True for _ in state))
  last, hs = unroll(cell, params, state, xs, zoneout=every)
  assert worst(last, state) == 0
  assert worst(hs, jnp.stack([state.h] * T)) == 0


def test_a_cell_that_takes_an_extra_itself_may_be_wrapped(key):
  def recur(params, state, ax, factor):
    after, *saved = lstm.recur(params, state, ax)
    return after._replace(h=factor * after.h), *saved

  parts = lstm.project, recur, None, None
  steps = one_step(lstm.initial_state, *parts)
  own = CellOfFunctions(lstm.init, lstm.initial_state, *parts, *steps)
  params, state, xs = arguments(lstm, key)
  wrapped = wrappers.resettable(wrappers.masked(own))
  mask, reset = MASK[0], jnp.zeros(B, bool)
  found = wrapped.step(params, state, xs[0], reset, mask, 0.5)
  after = own.step(params, state, xs[0], 0.5)
  for now, before, value in zip(after, state, found, strict=True):
    assert worst(value, jnp.where(mask[:, None], now, before)) == 0


@REPRESENTATIVE_CELLS
def test_the_step_of_each_wrapper_has_the_gradient_of_autodiff(cell, key):
  """Each by itself, as it is used without `unroll`."""
  args, options = arguments(cell, key), FEATURES["all"](cell)
  extras = {
    "masked": MASK[0],
    "resettable": RESET[1],
    "zoneout": jax.tree.map(lambda k: k[1], options["zoneout"]),
    "state_dropout": options["state_dropout"][1],
  }
  for flags in (MASK[0], RESET[1]):
    assert 0 < flags.sum() < len(flags)

  def run(step, extra, args):
    params, state, xs = args
    state = step(params, state, xs[0], extra)  # the state before is not zero
    return step(params, state, xs[1], extra)

  for name, extra in extras.items():
    wrapped = getattr(wrappers, name)(cell)
    assert wrapped.takes_tokens == cell.takes_tokens
    report = gradcheck(
      partial(run, wrapped.step, extra),
      partial(run, lambda *a, w=wrapped: w.forward(*a)[0], extra),
      args,
      key,
      max_coordinates=0,  # no central differences
      num_directions=0,
    )
    assert (
      np.max([t.explicit_autodiff.relative for t in report.tensors]) < 1e-12
    )


def gradient_of_steps(wraps, adjoint):
  """Return the gradient of T steps of a cell in all wrappers of a module."""
  key = jax.random.key(0)
  args, options = arguments(lstm, key), FEATURES["all"](lstm)
  rates, factors = options["zoneout"], options["state_dropout"]

  def run(params, state, xs):
    cell = wraps.saving_h(lstm)  # the h that W_h multiplies, for dW_h
    cell = wraps.masked(
      wraps.resettable(wraps.zoneout(wraps.state_dropout(cell)))
    )
    step = cell.step if adjoint == "step" else lambda *a: cell.forward(*a)[0]
    for t in range(T):
      rate = jax.tree.map(lambda k: k[t], rates)  # noqa: B023
      state = step(params, state, xs[t], MASK[t], RESET[t], rate, factors[t])
    return state

  f = weighed(run, key)
  with jax.disable_jit():  # each term would have a program of its own
    return jax.grad(f, (0, 1, 2))(*args)


@cache  # once for all terms
def gradient_without_error(adjoint):
  return gradient_of_steps(wrappers, adjoint)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("term", terms(wrappers))
def test_every_error_planted_in_the_wrappers_is_caught(term):
  expected = gradient_without_error("autodiff")
  planted = gradient_of_steps(plant(wrappers, term), "step")
  assert worst(planted, expected) > 1e-4
  assert worst(gradient_without_error("step"), expected) < 1e-12


def test_the_shares_of_a_zoneout_step_may_be_numbers(key):
  params, state, xs = arguments(lstm, key)
  step = wrappers.zoneout(lstm).step

  def results(shares):
    f = weighed(lambda *args: step(*args, shares), key)
    return jax.value_and_grad(f, (0, 1, 2))(params, state, xs[0])

  rates = zoneout_rates(lstm)
  expected = results(jax.tree.map(jnp.asarray, rates))
  assert worst(results(rates), expected) == 0


@pytest.mark.parametrize("adjoint", [Explicit(), Step(), Autodiff()], ids=str)
def test_no_gradient_flows_to_zoneout_and_state_dropout(adjoint, key):
  params, state, xs = arguments(lstm, key)

  def loss(rates, factor):
    options = {"zoneout": rates, "state_dropout": factor, "adjoint": adjoint}
    return unroll(lstm, params, state, xs, **options)[1].sum()

  rates, factor = jax.tree.map(lambda x: 0.3 + 0 * x, state), jnp.full(H, 0.7)
  gradient = jax.jit(jax.grad(loss, (0, 1)))(rates, factor)
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


# T, B, H are 5, 3, 6 in the messages.
@pytest.mark.parametrize(
  ("wrap", "extra", "message"),
  [
    *(
      (wrap, flag, f"^{name} must be bool \\[3\\], got {found}")
      for wrap, name in (("masked", "mask"), ("resettable", "reset"))
      for flag, found in (
        (np.ones((B, H), bool), r"bool \(3, 6\)"),
        (np.ones(B, np.int8), r"int8 \(3,\)"),
        (True, r"bool \(\)"),
        (None, "None"),
      )
    ),
    ("zoneout", (0.1, 0.1), "^zoneout must be of type LSTMState, got tuple"),
    (
      "zoneout",
      lstm.LSTMState(0.1, np.ones((T, B, H))),
      r"^zoneout\.c must broadcast to \[3, 6\], got \(5, 3, 6\)",
    ),
    (
      "zoneout",
      lstm.LSTMState(0.1, None),
      r"^zoneout\.c must broadcast to \[3, 6\], got None",
    ),
    (
      "state_dropout",
      np.ones((T, B, H)),
      r"^state_dropout must broadcast to \[3, 6\], got \(5, 3, 6\)",
    ),
    (
      "state_dropout",
      [[1.0], [1.0, 2.0]],
      r"^state_dropout must broadcast to \[3, 6\], got list: ",
    ),
    (
      "state_dropout",
      np.ones((B, H), complex),
      "^state_dropout must be real, got complex128",
    ),
    *(
      (wrap, "text", r"^extras\[0\] must be an array, got str$")
      for wrap in ("masked", "resettable", "zoneout", "state_dropout")
    ),
  ],
)
def test_a_wrapped_step_names_an_argument_that_does_not_fit(
  wrap, extra, message, key
):
  params, state, xs = arguments(lstm, key)
  cell = getattr(wrappers, wrap)(lstm)
  for function in (cell.step, cell.forward):
    with pytest.raises(ValueError, match=message):
      function(params, state, xs[0], extra)


def test_a_flag_of_a_step_may_be_a_list_or_a_python_bool(key):
  params, state, xs = arguments(lstm, key)
  for wrap in (wrappers.masked, wrappers.resettable):

    def gradient(state, x, flag, wrap=wrap):
      f = weighed(lambda *args: wrap(lstm).step(*args, flag), key)
      return jax.grad(f, (0, 1, 2))(params, state, x)

    flags = [True, False, True]
    expected = gradient(state, xs[0], jnp.asarray(flags))
    assert worst(gradient(state, xs[0], flags), expected) == 0
    one = jax.tree.map(lambda a: a[1], state)
    expected = gradient(one, xs[0, 1], jnp.asarray(False))
    assert worst(gradient(one, xs[0, 1], False), expected) == 0


def test_a_cell_that_is_not_hashable_is_refused():
  for wrap in (wrappers.masked, wrappers.resettable, wrappers.zoneout):
    with pytest.raises(ValueError, match=r"be hashable, .* SimpleNamespace$"):
      wrap(SimpleNamespace())


def test_only_in_the_order_of_unroll_masks_keep_and_resets_clear_the_state(key):
  params, state, xs = arguments(lstm, key)
  mask, reset, keep = jnp.zeros(B, bool), jnp.ones(B, bool), type(state)(1, 1)
  masked, resettable = wrappers.masked, wrappers.resettable
  after = masked(resettable(lstm)).step(params, state, xs[0], mask, reset)
  assert worst(after, state) == 0
  after = resettable(masked(lstm)).step(params, state, xs[0], reset, mask)
  assert not after.h.any()

  zoneout = wrappers.zoneout
  after = resettable(zoneout(lstm)).step(params, state, xs[0], reset, keep)
  assert not after.h.any()
  after = zoneout(resettable(lstm)).step(params, state, xs[0], keep, reset)
  assert worst(after, state) == 0
