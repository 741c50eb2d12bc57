"""Functions exported with symbolic T and B, serialized and deserialized."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import lstm_jax
from lstm_jax import (
  Autodiff,
  Explicit,
  Step,
  init_stack,
  lstm,
  rnn,
  sequence,
  unroll,
  unroll_stack,
)
from lstm_jax.sequence import wrappers
from tests.contract import LSTM_EVERY_DAY, each_cell
from tests.draws import D, H, arguments, normal_like, worst

ADJOINTS = [
  Explicit(),
  Explicit(chunk=2),
  Explicit("recompute"),
  Explicit("recompute", 2),
  Step(),
  Autodiff(),
]
# (T, B) of calls; with a symbolic T, "recompute" has chunks of 32 by default.
SIZES = [(1, 1), (5, 3), (33, 4)]


def exported(f, *shapes):
  """Return f exported for these shapes, serialized and deserialized."""
  serialized = export.export(jax.jit(f))(*shapes).serialize()
  return export.deserialize(serialized).call


def spec(tree):
  """Return the shapes and dtypes of a tree of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def symbolic(sizes, *last, dtype=jnp.float64, **options):
  """Return an array's shape: `sizes`, such as "T, B", then `last`."""
  shape = export.symbolic_shape(sizes, **options)
  return jax.ShapeDtypeStruct((*shape, *last), dtype)


def draw(key, steps, batch, tokens):
  """Return random xs: integer tokens [T, B], or vectors [T, B, D]."""
  if tokens:
    return jax.random.randint(key, (steps, batch), 0, D)
  return normal_like(key, np.zeros((steps, batch, D)))


def value_and_gradient(cell, tokens, **options):
  """Return a function from (params, xs) to outputs and every gradient."""

  def f(params, xs):
    (state, hs), pullback = jax.vjp(
      lambda params, xs: unroll(cell, params, None, xs, **options), params, xs
    )
    d_params, d_xs = pullback((state, jnp.cos(hs)))
    return state, hs, d_params, 0.0 if tokens else d_xs  # tokens have none

  return f


@cache  # compiled once for the tests of all adjoints
def by_autodiff(cell, tokens):
  return jax.jit(value_and_gradient(cell, tokens, adjoint=Autodiff()))


@pytest.mark.everyday(1)
@each_cell(
  ("adjoint", "tokens"),
  [*product(ADJOINTS, [False, True])],
  others=[(Explicit(), False), (Explicit(), True)],
  everyday=[*product([Explicit(), Explicit("recompute", 2)], [False, True])],
)
def test_symbolic_t_and_b_give_the_gradient_of_autodiff(
  cell, adjoint, tokens, key
):
  if tokens and not getattr(cell, "takes_tokens", False):
    pytest.skip("the cell takes no tokens")
  params, _, _ = arguments(cell, key)
  f = value_and_gradient(cell, tokens, adjoint=adjoint)
  dtype = jnp.int64 if tokens else jnp.float64
  xs = symbolic("T, B", *([] if tokens else [D]), dtype=dtype)
  call = exported(f, spec(params), xs)
  expected = by_autodiff(cell, tokens)
  for steps, batch in SIZES if cell is lstm else SIZES[-1:]:
    xs = draw(key, steps, batch, tokens)
    assert worst(call(params, xs), expected(params, xs)) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("sizes", ["2*n, B", "5, B", "T, 3"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_other_symbolic_sizes_have_autodiffs_gradient(sizes, adjoint, key):
  params, _, _ = arguments(lstm, key)
  f = value_and_gradient(lstm, False, adjoint=adjoint)
  call = exported(f, spec(params), symbolic(sizes, D))
  xs = draw(key, 6 if "n" in sizes else 5, 3, tokens=False)
  expected = by_autodiff(lstm, False)(params, xs)
  assert worst(call(params, xs), expected) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
  "adjoint", [Explicit(chunk=2), Explicit("recompute", 2)], ids=str
)
def test_a_padded_chunk_works_with_lengths_and_resets_in_both_directions(
  adjoint, reverse, key
):
  params, _, _ = arguments(lstm, key)

  def f(adjoint, params, xs, lengths, reset):
    g = value_and_gradient(
      lstm,
      False,
      adjoint=adjoint,
      reverse=reverse,
      lengths=lengths,
      reset=reset,
    )
    return g(params, xs)

  scope = export.SymbolicScope()
  call = exported(
    partial(f, adjoint),
    spec(params),
    symbolic("T, B", D, scope=scope),
    symbolic("B", dtype=jnp.int32, scope=scope),
    symbolic("T, B", dtype=bool, scope=scope),
  )
  xs = draw(key, 5, 3, tokens=False)
  reset = jax.random.bernoulli(key, 0.3, (5, 3))
  args = params, xs, jnp.array([5, 0, 2], jnp.int32), reset
  expected = jax.jit(partial(f, Autodiff()))(*args)
  assert worst(call(*args), expected) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("batch", ["", "2, B"])
def test_a_padded_chunk_has_any_number_of_batch_axes(batch, key):
  params, _, _ = arguments(lstm, key)
  f = value_and_gradient(lstm, False, adjoint=Explicit(chunk=2))
  call = exported(f, spec(params), symbolic(f"T, {batch}", D))
  xs = normal_like(key, np.zeros((5, *((2, 3) if batch else ()), D)))
  expected = jax.jit(value_and_gradient(lstm, False, adjoint=Autodiff()))
  assert worst(call(params, xs), expected(params, xs)) < 1e-12


@pytest.mark.parametrize(
  ("adjoint", "chunk"), [(Explicit(chunk=4), 4), (Explicit("recompute"), 32)]
)
def test_no_chunk_is_padded_if_chunks_divide_a_symbolic_t(adjoint, chunk, key):
  params, _, _ = arguments(lstm, key)

  def has_a_mask(sizes):
    f = value_and_gradient(lstm, False, adjoint=adjoint)
    program = export.export(jax.jit(f))(spec(params), symbolic(sizes, D))
    # bool [C, 3]: of a chunk
    return f"<{chunk}x3xi1>" in program.mlir_module()

  assert has_a_mask("T, 3") and not has_a_mask(f"{chunk}*n, 3")


@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_the_gradient_of_an_exported_function_is_exported_with_it(adjoint, key):
  params, _, _ = arguments(lstm, key)

  def f(params, xs):
    return jnp.cos(unroll(lstm, params, None, xs, adjoint=adjoint)[1]).sum()

  program = export.export(jax.jit(f))(spec(params), symbolic("T, B", D))
  loaded = export.deserialize(program.serialize(vjp_order=1))
  xs = draw(key, 5, 3, tokens=False)
  found = jax.jit(jax.grad(loaded.call, (0, 1)))(params, xs)
  assert worst(found, jax.jit(jax.grad(f, (0, 1)))(params, xs)) < 1e-12


@pytest.mark.everyday(1)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_is_exported_and_deserialized(bidirectional, key):
  cells = lstm_jax.gru, lstm
  params = normal_like(
    key,
    init_stack(
      cells, key, D, H, bidirectional=bidirectional, dtype=jnp.float64
    ),
  )

  def f(params, xs):
    return unroll_stack(cells, params, None, xs)

  call = exported(f, spec(params), symbolic("T, B", D))
  xs = draw(key, 4, 2, tokens=False)
  assert worst(call(params, xs), jax.jit(f)(params, xs)) < 1e-12


@LSTM_EVERY_DAY
def test_a_step_and_its_residuals_are_exported_and_deserialized(cell, key):
  params, state, xs = arguments(cell, key)
  call = exported(cell.forward, *spec((params, state, xs[0])))
  found, saved = call(params, state, xs[0])
  expected = jax.jit(cell.forward)(params, state, xs[0])
  assert type(found) is type(state) and type(saved.params) is type(params)
  assert worst((found, saved), expected) < 1e-12


@pytest.mark.exhaustive
def test_the_residuals_of_a_wrapped_step_are_exported(key):
  params, state, xs = arguments(rnn, key)
  args = params, state, xs[0], jnp.array([True, False, True])
  forward = jax.jit(wrappers.resettable(rnn).forward)
  _, saved = exported(forward, *spec(args))(*args)
  assert type(saved.residuals) is wrappers.ResidualsWithH
  assert worst(saved.residuals, forward(*args)[1].residuals) < 1e-12


@pytest.mark.parametrize("module", [lstm_jax, sequence], ids=str)
def test_every_public_namedtuple_of_arrays_can_be_serialized(module):
  checked = 0
  for name, value in vars(module).items():
    if name.endswith(("Params", "State", "Directions", "LowRank")):
      arrays = value(*(jnp.ones(1) for _ in value._fields))
      program = export.export(jax.jit(lambda x: x))(spec(arrays)).serialize()
      assert type(export.deserialize(program).call(arrays)) is value
      assert f"lstm_jax.{name}".encode() in program  # without its module
      checked += 1
  assert checked
