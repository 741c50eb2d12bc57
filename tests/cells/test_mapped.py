"""`vmap` over rows, for sequences and steps; most tests share the weights."""

import re
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lstm_jax import Autodiff, Explicit, Step, gru, lstm, slstm, unroll
from tests.draws import B, D, H, T, arguments, largest, weighed, worst
from tests.sequence.options import FEATURES

V, W = 7, 2  # how many rows `vmap` maps
ADJOINTS = [Explicit(), Explicit(chunk=2), Explicit("recompute", 2), Step()]


def gradient_of_vmap(inner, options, key):
  """Return a function of an adjoint: the gradient for V · B sequences."""
  params, state, _ = arguments(slstm, key)
  xs = jax.random.normal(key, (T, V, B, D))

  def gradient(adjoint):
    def f(params, state, xs):
      run = partial(unroll, slstm, params, adjoint=adjoint, **options)
      return jax.vmap(inner(run), (None, 1), 1)(state, xs)

    return jax.jit(jax.grad(weighed(f, key), (0, 1, 2)))(params, state, xs)

  return gradient


@pytest.mark.everyday(2)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("features", ["mask", "expected zoneout", "all"])
def test_what_all_rows_share_is_repeated(features, adjoint):
  expected = gradient_with(features, Autodiff())
  found = gradient_with(features, adjoint)
  assert worst(found, expected) < tolerance(expected)


@cache  # autodiff's once for all adjoints
def gradient_with(features, adjoint):
  options = FEATURES[features](slstm)
  key = jax.random.key(0)
  return gradient_of_vmap(lambda run: run, options, key)(adjoint)


def tolerance(expected):
  return 1e-12 * max(1, largest(expected))


def test_a_sequence_for_all_rows_is_computed_once(key):
  params, state, xs = arguments(lstm, key)
  scales = jnp.arange(1.0, V + 1)

  def scaled_outputs(params, scale):
    return scale * unroll(lstm, params, state, xs)[1]

  def expected(params, scales):
    return jnp.stack([scaled_outputs(params, scale) for scale in scales])

  mapped = jax.vmap(jax.jit(scaled_outputs), (None, 0))
  found, right = (
    jax.grad(weighed(f, key), (0, 1))(params, scales)
    for f in (mapped, expected)
  )
  assert worst(found, right) < 1e-12
  text = jax.jit(mapped).lower(params, scales).as_text()
  gates = rf"{B}x{4 * H}xf64"
  assert re.search(gates, text) and not re.search(rf"{V}x.*{gates}", text)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_rows_of_rows_with_their_own_masks_have_the_gradient(adjoint, key):
  params, state, _ = arguments(lstm, key)
  tokens = jax.random.randint(key, (W, V, T, B), 0, D)
  lengths = jax.random.randint(key, (V, B), 0, T + 1)
  factors = jax.random.uniform(key, (W, B, H))

  def gradient(adjoint):
    def f(params, state):
      def one(tokens, lengths, factors):
        options = {"lengths": lengths, "state_dropout": factors}
        return unroll(lstm, params, state, tokens, adjoint=adjoint, **options)

      inner = jax.vmap(one, (0, 0, None), -1)
      return jax.vmap(inner, (0, None, 0))(tokens, lengths, factors)

    return jax.jit(jax.grad(weighed(f, key), (0, 1)))(params, state)

  expected = gradient(Autodiff())
  assert worst(gradient(adjoint), expected) < tolerance(expected)


def test_each_row_has_its_own_gradient(key):
  params, state, _ = arguments(lstm, key)
  xs = jax.random.normal(key, (V, T, D))
  state = jax.tree.map(lambda x: x[0], state)
  scalar = weighed(lambda params, x: unroll(lstm, params, state, x), key)
  found = jax.vmap(jax.grad(scalar), (None, 0))(params, xs)
  alone = [jax.grad(scalar)(params, x) for x in xs]
  expected = jax.tree.map(lambda *rows: jnp.stack(rows), *alone)
  assert worst(found, expected) < 1e-12


def in_a_scan(f):
  """Return f, called in a loop whose body closes over the arguments."""

  def looped(*args):
    def body(carry, _):
      return jax.tree.map(jnp.add, carry, f(*args)), ()

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(f, *args))
    return lax.scan(body, zeros, length=2)[0]

  return looped


INSIDE = {
  "jit": lambda f: lambda *args: jax.jit(lambda: f(*args))(),
  "scan": in_a_scan,
  "checkpoint": lambda f: lambda *args: jax.checkpoint(lambda: f(*args))(),
  "vjp": lambda f: (
    lambda state, xs: jax.vjp(lambda state: f(state, xs), state)[1](
      f(state, xs)
    )
  ),
}


@pytest.mark.everyday(2)
@pytest.mark.parametrize("inside", INSIDE)
def test_a_transformation_inside_of_vmap_may_close_over_its_rows(inside, key):
  gradient = gradient_of_vmap(INSIDE[inside], {}, key)
  expected = gradient(Autodiff())
  assert worst(gradient(Explicit()), expected) < tolerance(expected)


class Variant(NamedTuple):
  """A GRU with some functions replaced, to compare its outputs alone."""

  functions: dict

  def __getattr__(self, name):
    return self.functions.get(name) or getattr(gru, name)

  def __hash__(self):
    return id(self.functions)


def scaled(scale):
  """Return a cell whose pre-activations are multiplied by scale()."""

  def recur(params, state, ax, *extras):
    return gru.recur(params, state, scale() * ax, *extras)

  return Variant({"recur": recur})


def test_a_cell_may_name_the_axis_or_close_over_mapped_values(key):
  params, state, _ = arguments(gru, key, batch=())
  xs, scales = jax.random.normal(key, (V, T, D)), jnp.arange(1.0, V + 1)

  def run(cell, x):
    return unroll(cell, params, state, x)[1]

  pairs = zip(scales, xs, strict=True)
  expected = jnp.stack([run(scaled(lambda s=s: s), x) for s, x in pairs])
  closing = jax.vmap(lambda s, x: run(scaled(lambda: s), x))(scales, xs)
  naming = scaled(lambda: scales[lax.axis_index("rows")])
  named = jax.vmap(partial(run, naming), axis_name="rows")(xs)
  assert worst(closing, expected) < 1e-12
  assert worst(named, expected) < 1e-12


class Counted(NamedTuple):
  h: jax.Array
  steps: jax.Array  # [], one number for all rows


def test_a_state_may_hold_a_number_for_all_rows(key):
  def initial_state(params, batch_shape=()):
    zero = gru.initial_state(params, batch_shape)
    return Counted(zero.h, jnp.zeros((), zero.h.dtype))

  def recur(params, state, ax, *extras):
    ax = ax * 0.5**state.steps
    after, *saved = gru.recur(params, type(zero)(state.h), ax, *extras)
    return Counted(after.h, state.steps + 1), *saved

  def recur_backward(params, gates, residuals, d_state, *extras):
    before = type(zero)(d_state.h)
    d_before, *das = gru.recur_backward(params, gates, residuals, before)
    return Counted(d_before.h, jnp.zeros_like(d_state.steps)), *das

  params, zero, _ = arguments(gru, key, batch=())
  functions = (initial_state, recur, recur_backward)
  cell = Variant({f.__name__: f for f in functions})
  xs = jax.random.normal(key, (V, T, D))
  run = lambda x: unroll(cell, params, None, x)[1]  # noqa: E731
  assert worst(jax.vmap(run)(xs), jnp.stack([run(x) for x in xs])) < 1e-12


def test_weights_of_each_row_have_the_gradient_of_autodiff(key):
  many = [arguments(gru, k) for k in jax.random.split(key, V)]
  args = jax.tree.map(lambda *rows: jnp.stack(rows), *many)

  def gradient(adjoint):
    f = jax.vmap(partial(unroll, gru, adjoint=adjoint))
    return jax.jit(jax.grad(weighed(f, key), (0, 1, 2)))(*args)

  expected = gradient(Autodiff())
  assert worst(gradient(Explicit()), expected) < tolerance(expected)


def in_steps(params, state, xs, vmap):
  def body(state, x):
    after = vmap(partial(lstm.step, params), (0, 0), 0)(state, x)
    return after, after.h

  return lax.scan(body, state, xs)


def steps_inside(params, state, xs, vmap):
  def sequence(state, xs):
    def body(state, x):
      after = lstm.step(params, state, x)
      return after, after.h

    return lax.scan(body, state, xs)

  return vmap(sequence, (0, 1), (0, 1))(state, xs)


def in_a_sequence(adjoint, inner=lambda f: f):
  def run(params, state, xs, vmap):
    f = inner(partial(unroll, lstm, params, adjoint=adjoint))
    return vmap(f, (0, 1), (0, 1))(state, xs)

  return run


RUNS = {
  "scan of vmap": in_steps,
  "vmap of scan": steps_inside,
  "vmap of jit": in_a_sequence(Explicit(), jax.jit),
  "vmap of checkpoint": in_a_sequence(Explicit(), jax.checkpoint),
} | {str(a): in_a_sequence(a) for a in ADJOINTS}


@pytest.mark.parametrize("run", RUNS)
def test_no_row_has_a_gradient_of_the_weights_in_the_program(run, key):
  """Where `vmap` has an axis of a mesh, each row has one."""
  params, state, _ = arguments(lstm, key, batch=(V,))
  xs = jax.random.normal(key, (T, V, D))

  def program(vmap):
    f = partial(RUNS[run], vmap=vmap)
    gradient = jax.jit(jax.grad(weighed(f, key), (0, 1, 2)))
    return gradient, gradient.lower(params, state, xs).as_text()

  (found, text), (mapped, text_of_mapped) = (
    program(jax.vmap),
    program(partial(jax.vmap, spmd_axis_name="data")),
  )
  of_each = re.compile(rf"tensor<{V}x({D}|{H})x{4 * H}xf64>")
  assert of_each.search(text_of_mapped) and not of_each.search(text)
  args = params, state, xs
  assert worst(found(*args), mapped(*args)) < 1e-12
