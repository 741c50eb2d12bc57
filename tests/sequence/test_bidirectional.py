"""Both directions, and stacks: skips, dropout, resets, batch-major order."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Directions,
  Explicit,
  init_stack,
  initial_stack_state,
  lstm,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.sequence import regularize
from tests.contract import REPRESENTATIVE_CELLS
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst

LENGTHS = np.array([2, T, 0])


def both(cell, key):
  params, state, xs = arguments(cell, key)
  other = arguments(cell, jax.random.key(1))
  return Directions(params, other[0]), Directions(state, other[1]), xs


@pytest.mark.everyday(1)
@REPRESENTATIVE_CELLS
@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_both_directions_have_the_gradient_of_autodiff(cell, merge, key):
  args = both(cell, key)

  programs = set()

  def gradient(**options):
    run = partial(unroll_both, cell, merge=merge, lengths=LENGTHS, **options)
    f = jax.jit(jax.value_and_grad(weighed(run, key), (0, 1, 2)))
    programs.add(f.lower(*args).as_text())
    return f(*args)

  expected = gradient(adjoint=Autodiff())
  assert worst(gradient(), expected) < 1e-12
  assert worst(gradient(adjoint=Explicit(chunk=2)), expected) < 1e-12
  assert len(programs) == 3  # each adjoint has its own


@REPRESENTATIVE_CELLS
def test_both_directions_equal_two_unrolls_merged(cell, key):
  params, states, xs = both(cell, key)
  last, hs = unroll(cell, params.forward, states.forward, xs)
  first, reversed_hs = unroll(
    cell, params.backward, states.backward, xs, reverse=True
  )
  found = unroll_both(cell, params, states, xs)
  expected = jnp.concatenate([hs, reversed_hs], -1)
  assert worst(found, (Directions(last, first), expected)) == 0
  _, total = unroll_both(cell, params, states, xs, merge="sum")
  assert worst(total, hs + reversed_hs) == 0


@REPRESENTATIVE_CELLS
def test_a_bidirectional_stack_with_skips_equals_its_layers_by_hand(cell, key):
  params = init_stack(cell, key, D, (H, H), bidirectional=True, dtype=float)
  params = normal_like(key, params)
  states = initial_stack_state(cell, params, (B,))
  _, _, xs = arguments(cell, key)
  last, hs = unroll_stack(cell, params, states, xs, skip=True, lengths=LENGTHS)
  low, middle = unroll_both(cell, params[0], states[0], xs, lengths=LENGTHS)
  top, high = unroll_both(cell, params[1], states[1], middle, lengths=LENGTHS)
  assert hs.shape == (T, B, 2 * states[1].forward.h.shape[-1])
  assert worst((last, hs), ((low, top), middle + high)) < 1e-12


def test_a_skip_adds_no_masked_inputs(key):
  params = init_stack(lstm, key, H, (H, H), dtype=float)
  xs = jax.random.normal(key, (T, B, H))
  lengths, mask = np.array([2, T, T]), np.ones((T, B), bool)
  mask[:, 2] = False
  padded = (np.arange(T)[:, None] >= lengths) | ~mask
  broken = jnp.where(padded[..., None], jnp.nan, xs)

  def loss(xs):
    last, hs = unroll_stack(
      lstm, params, None, xs, skip=True, lengths=lengths, mask=mask
    )
    return (hs**2).sum(), (last, hs)

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  expected, found = run(xs), run(broken)
  assert worst(found, expected) == 0
  (_, (_, hs)), gradient = found
  assert not np.asarray(hs)[padded].any()
  assert not np.asarray(gradient)[padded].any()


@pytest.mark.parametrize(
  ("batch", "time_major"),
  [((), True), ((B, 2), True), ((B,), False), ((B, 2), False)],
)
def test_a_skip_adds_no_masked_inputs_whatever_the_axes(batch, time_major, key):
  params = init_stack(lstm, key, H, (H, H), dtype=float)
  xs = jax.random.normal(key, (T, *batch, H))
  lengths = np.arange(2, 2 + np.prod(batch, dtype=int)).reshape(batch) % T
  padded = np.stack([t >= lengths for t in range(T)])
  xs = jnp.where(padded[..., None], jnp.nan, xs)
  run = partial(unroll_stack, lstm, params, None, skip=True, lengths=lengths)
  if time_major:
    _, hs = run(xs)
  else:
    hs = run(xs.swapaxes(0, 1), time_major=False)[1].swapaxes(0, 1)
  assert not np.asarray(hs)[padded].any()
  low = unroll(lstm, params[0], None, xs, lengths=lengths)[1] + xs
  low = jnp.where(padded[..., None], 0, low)
  high = unroll(lstm, params[1], None, low, lengths=lengths)[1] + low
  assert worst(hs, high) == 0


def test_resets_of_tokens_are_those_of_one_hot_rows(key):
  params, states, _ = both(lstm, key)
  tokens = jax.random.randint(key, (T, B), 0, D)
  reset = (np.arange(T)[:, None] + np.arange(B)) % 3 == 2
  for options in ({"reset": reset}, {"reset": reset, "lengths": LENGTHS}):
    run = partial(unroll_both, lstm, params, states, **options)
    assert worst(run(tokens), run(jax.nn.one_hot(tokens, D))) < 1e-12


def test_dropout_between_layers_depends_on_its_key_alone(key):
  params = init_stack(lstm, key, D, (H, H, 2), dtype=float)
  states = initial_stack_state(lstm, params, (B,))
  _, _, xs = arguments(lstm, key)
  run = partial(unroll_stack, lstm, params, states, xs)
  plain, dropped = run()[1], run(dropout=0.5, key=key)[1]
  assert worst(plain, dropped) > 1e-3
  assert worst(run(dropout=0.5, key=key)[1], dropped) == 0
  assert worst(run(dropout=0.5, key=jax.random.key(1))[1], dropped) > 1e-3
  assert worst(run(dropout=0.0, key=key)[1], plain) == 0
  assert worst(run(dropout=0.5, key=key, locked=True)[1], dropped) > 1e-3
  drops = regularize.dropout, regularize.locked_dropout
  for locked, skip in product((False, True), repeat=2):
    hs, keys = xs, jax.random.split(key, 3)
    for layer, (weights, state) in enumerate(zip(params, states, strict=True)):
      inputs = drops[locked](keys[layer], hs, 0.5) if layer else hs
      _, outputs = unroll(lstm, weights, state, inputs)
      # Only layer 1 has outputs of the size of its inputs.
      hs = hs + outputs if skip and layer == 1 else outputs
    found = run(dropout=0.5, key=key, locked=locked, skip=skip)[1]
    assert worst(found, hs) < 1e-15
  with pytest.raises(ValueError, match=r"needs a key, got dropout=0\.5, key=N"):
    unroll_stack(lstm, params[:1], states[:1], xs, dropout=0.5)
  for rate in (-0.1, 1.0, 1.5, None):
    message = rf"^dropout must be a number in \[0, 1\), got {rate}$"
    with pytest.raises(ValueError, match=message):
      unroll_stack(lstm, params[:1], states[:1], xs, dropout=rate, key=key)
  with pytest.raises(ValueError, match=r"^dropout must be a number in \[0"):
    unroll_stack(lstm, params, states, xs, dropout=np.array([0.1, 0.2]))


@pytest.mark.exhaustive
def test_batch_major_stacks_exchange_axes(key):
  params = init_stack(lstm, key, D, (H, 2), bidirectional=True, dtype=float)
  states = initial_stack_state(lstm, params, (B,))
  _, _, xs = arguments(lstm, key)
  steps = np.arange(T)[:, None]
  mask, reset = (steps + np.arange(B)) % 3 > 0, (steps + np.arange(B)) % 4 == 2
  options = {"mask": mask, "reset": reset, "lengths": LENGTHS}
  last, hs = unroll_stack(lstm, params, states, xs, **options)
  assert worst(hs, unroll_stack(lstm, params, states, xs)[1]) > 1e-3
  options |= {"mask": mask.T, "reset": reset.T, "time_major": False}
  swapped = xs.swapaxes(0, 1)
  found = unroll_stack(lstm, params, states, swapped, **options)
  assert worst(found, (last, hs.swapaxes(0, 1))) == 0


def test_both_directions_refuse_reverse_and_an_unknown_option(key):
  for name in ("reverse", "masks"):
    message = rf"^unroll_both\(\) got an unexpected keyword argument '{name}'$"
    with pytest.raises(TypeError, match=message):
      unroll_both(lstm, *both(lstm, key), **{name: True})


def test_an_empty_sequence_with_resets_is_refused(key):
  params, *_ = both(lstm, key)
  for xs in (0.5, jnp.zeros((0, B, D))):
    with pytest.raises(ValueError, match=r"^xs must have at least one"):
      unroll_both(
        lstm, params, None, xs, reset=jnp.zeros(np.shape(xs)[:2], bool)
      )


def test_error_messages_name_what_does_not_fit(key):
  message = "^merge must be concat or sum, got 'mean'$"
  with pytest.raises(ValueError, match=message):
    unroll_both(lstm, *both(lstm, key), merge="mean")
  message = "^a stack needs at least one layer, got 0$"
  with pytest.raises(ValueError, match=message):
    init_stack(lstm, key, D, ())
  params, states, xs = both(lstm, key)
  with pytest.raises(ValueError, match=r"^xs must be .*, got \(5,\)"):
    unroll_both(lstm, params, None, jnp.ones(5), reset=jnp.zeros(5, bool))
  pair = r"must be Directions\(forward, backward\), got"
  with pytest.raises(ValueError, match=f"^params {pair} LSTMParams of 3$"):
    unroll_both(lstm, params.forward, states, xs)
  with pytest.raises(ValueError, match=f"^zoneout {pair} tuple of 1$"):
    unroll_both(lstm, params, None, xs, zoneout=states[:1])
  with pytest.raises(ValueError, match=f"^state_dropout {pair} float$"):
    unroll_both(lstm, params, None, xs, state_dropout=0.5)


@pytest.mark.exhaustive
@REPRESENTATIVE_CELLS
def test_resets_keep_segments_apart_in_both_directions(cell, key):
  # Row 0 is the segments 0–1 and 3–6, a masked step between them; row 1 is 0–3
  # and 4–5, then padding; row 2 is one segment. A masked reset does not count.
  steps = 7
  params, states, _ = both(cell, key)
  # In NumPy: JAX would compile each slice.
  states, xs = jax.tree.map(
    np.asarray, (states, jax.random.normal(key, (steps, 3, D)))
  )
  mask, reset = np.ones((2, steps, 3), bool)
  reset[:] = False
  mask[2, 0] = False
  reset[3, 0] = reset[4, 1] = reset[2, 0] = reset[6, 1] = True
  lengths = np.array([steps, 6, steps])
  options = {"mask": mask, "lengths": lengths, "reset": reset}
  zero = Directions(*(cell.initial_state(weights, ()) for weights in params))

  def row(b):
    return jax.tree.map(lambda s: s[b], states)

  def apart(b, first, last, *, begins, ends):
    """Return the outputs of the segment first … last of row b by itself.

    The forward state enters at the row's first step, the backward state at its
    last: only the segment there gets it, the others start from zero.
    """
    state = Directions(
      row(b).forward if begins else zero.forward,
      row(b).backward if ends else zero.backward,
    )
    return run(params, state, xs[first : last + 1, b])

  compiled = jax.jit(partial(unroll_both, cell))

  def run(*args, **options):
    return np.asarray(compiled(*args, **options)[1])

  hs = run(params, states, xs, **options)
  assert worst(hs[:2, 0], apart(0, 0, 1, begins=True, ends=False)) < 1e-12
  assert worst(hs[3:, 0], apart(0, 3, 6, begins=False, ends=True)) < 1e-12
  assert worst(hs[:4, 1], apart(1, 0, 3, begins=True, ends=False)) < 1e-12
  assert worst(hs[4:6, 1], apart(1, 4, 5, begins=False, ends=True)) < 1e-12
  assert worst(hs[:, 2], apart(2, 0, 6, begins=True, ends=True)) < 1e-12
  assert not hs[2, 0].any() and not hs[6, 1].any()

  # Without a mask, batch first, and in a stack of one layer.
  reset[2, 0] = reset[6, 1] = False
  hs = run(params, states, xs, reset=reset)
  assert worst(hs[3:, 0], apart(0, 3, 6, begins=False, ends=True)) < 1e-12
  assert worst(hs[:4, 1], apart(1, 0, 3, begins=True, ends=False)) < 1e-12
  swapped = {"reset": reset.T, "time_major": False}
  _, other = unroll_both(cell, params, states, xs.swapaxes(0, 1), **swapped)
  assert worst(other.swapaxes(0, 1), hs) == 0
  _, other = unroll_stack(cell, [params], [states], xs, reset=reset)
  assert worst(other, hs) == 0

  def gradient(**adjoint):
    run = partial(unroll_both, cell, **options, **adjoint)
    f = jax.jit(jax.grad(weighed(run, key), (0, 1, 2)))
    return f(params, states, xs)

  expected = gradient(adjoint=Autodiff())
  assert worst(gradient(), expected) < 1e-12
  assert worst(gradient(adjoint=Explicit(chunk=2)), expected) < 1e-12
