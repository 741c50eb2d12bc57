"""Dtypes: of the outputs, and of the operands of products."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, Step, lru, lstm, min_gru, unroll
from lstm_jax.cells.precision import cast_matrices
from lstm_jax.sequence import checkpointing, scan
from tests.compiling import dtypes
from tests.draws import B, D, H, T, arguments, weighed, worst

ADJOINTS = (
  Explicit(),
  Explicit(chunk=2),
  Explicit("recompute", 2),
  Step(),
  Autodiff(),
)


@pytest.mark.everyday(4)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("cell", [lstm, min_gru], ids=["lstm", "min_gru"])
def test_outputs_have_the_dtype_of_the_state(cell, adjoint, key):
  exact = arguments(cell, key)
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
  run = partial(unroll, cell, adjoint=adjoint)
  mixed = exact[0], low[1], exact[2]  # the state alone is narrow
  for args, promotion in ((low, "strict"), (mixed, "standard")):
    for f in (run, lambda *args: jax.vjp(run, *args)[0]):
      with jax.numpy_dtype_promotion(promotion):
        outputs = jax.tree.leaves(jax.eval_shape(f, *args))
      assert {x.dtype for x in outputs} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.everyday(5)
@pytest.mark.parametrize("projects_first", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("cell", [lstm, min_gru], ids=["lstm", "min_gru"])
@pytest.mark.usefixtures("traced_anew")
def test_every_product_takes_the_compute_dtype_and_gives_float32(
  cell, adjoint, projects_first, key, monkeypatch
):
  # Programs of outputs alone compute x W_x before the loop, or in each step.
  for module in scan, checkpointing:
    monkeypatch.setattr(module, "projects_first", lambda *_: projects_first)
  params, state, xs = jax.tree.map(
    lambda x: x.astype(jnp.float32), arguments(cell, key)
  )
  run = partial(unroll, cell, adjoint=adjoint, compute_dtype=jnp.bfloat16)

  def loss(params, state, xs):
    return run(params, state, xs)[1].sum()

  programs = [run]
  if adjoint != Autodiff():  # whose products take cotangents in float32
    programs.append(jax.grad(loss, (0, 1, 2)))
  for program in programs:
    found = dtypes(program, params, state, xs)["dot_general"]
    assert found == {("bfloat16", "bfloat16", "float32")}


@pytest.mark.everyday(2)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_tokens_take_rows_of_weights_that_are_not_cast(adjoint, key):
  params, state, _ = jax.tree.map(
    lambda x: x.astype(jnp.float32), arguments(lstm, key)
  )
  tokens = jax.random.randint(key, (T, B), 0, D)
  run = partial(unroll, lstm, adjoint=adjoint, compute_dtype=jnp.bfloat16)

  def loss(params, state):
    return run(params, state, tokens)[1].sum()

  for program in (
    lambda params, state: run(params, state, tokens),
    jax.grad(loss, (0, 1)),
  ):
    found = dtypes(program, params, state)["gather"]
    assert found == {("float32", "int32", "float32")}


def test_only_matrices_are_cast_to_the_compute_dtype(key):
  params = cast_matrices(lru.init(key, D, H), jnp.bfloat16)  # w_x, b, nu
  assert [str(x.dtype) for x in params] == ["bfloat16", "float32", "float32"]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("cell", [lstm, min_gru], ids=["lstm", "min_gru"])
@pytest.mark.parametrize("wide", ["w_x", "b"])
def test_weights_of_two_dtypes_have_gradients_of_the_same_dtypes(
  cell, adjoint, wide, key
):
  """Also with chunks, which add cotangents of one dtype to sums of another.

  One weight is float64. If it is w_x, cotangents of b in float64 are added to a
  sum in float32; if it is b, its cotangents in float32 to a sum in float64.
  """
  exact = arguments(cell, key, steps=4)
  params, *args = jax.tree.map(lambda x: x.astype(jnp.float32), exact)
  params = params._replace(**{wide: getattr(exact[0], wide)})

  def gradient(adjoint):
    run = partial(unroll, cell, adjoint=adjoint)
    return jax.grad(weighed(run, key), (0, 1, 2))(params, *args)

  with jax.numpy_dtype_promotion("standard"):
    found, expected = gradient(adjoint), gradient(Autodiff())
  assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(
    lambda x: x.dtype, (params, *args)
  )
  assert worst(*jax.tree.map(jnp.float64, (found, expected))) < 1e-4


@pytest.mark.usefixtures("traced_anew")
def test_a_compute_dtype_and_its_name_are_one_program(monkeypatch, key):
  project, traced = lstm.project, []

  def counted(params, x):
    traced.append(x)
    return project(params, x)

  monkeypatch.setattr(lstm, "project", counted)
  args = jax.tree.map(lambda x: x.astype(jnp.float32), arguments(lstm, key))
  unroll(lstm, *args, compute_dtype=jnp.bfloat16)
  count = len(traced)
  for dtype in ("bfloat16", jnp.dtype("bfloat16")):
    unroll(lstm, *args, compute_dtype=dtype)
  assert 0 < len(traced) == count
