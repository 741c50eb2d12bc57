"""A cell of one's own with the state (n [...], h [..., H]).

The first array of the state has batch axes alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lstm_jax import Autodiff, Explicit, unroll
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.platform import traced_for
from tests.draws import B, D, H, T, normal_like, weighed, worst
from tests.sequence.options import LENGTHS, MASK, RESET


class Params(NamedTuple):
  w_x: jax.Array  # [D, H]


class State(NamedTuple):
  n: jax.Array  # [...], a number for each sequence
  h: jax.Array  # [..., H]


def initial_state(params, batch_shape=()):
  shapes = batch_shape, (*batch_shape, H)
  return State(*(jnp.zeros(shape, params.w_x.dtype) for shape in shapes))


def project(params, x):
  return x @ params.w_x


def recur(params, state, ax):
  n = 0.9 * state.n + ax[..., 0]
  h = jnp.tanh(ax + n[..., None])
  return State(n, h), 1 - h * h, ()


def recur_backward(params, gates, residuals, d_state):
  da = d_state.h * gates
  dn = d_state.n + da.sum(-1)
  return State(0.9 * dn, jnp.zeros_like(da)), da.at[..., 0].add(dn)


def parameter_gradients(params, x, h, residuals, da):
  rows = x.reshape(-1, x.shape[-1]), da.reshape(-1, H)
  return Params(rows[0].T @ rows[1]), da @ params.w_x.T


class Cell(NamedTuple):
  initial_state: object
  project: object
  recur: object
  recur_backward: object
  parameter_gradients: object
  forward: object
  backward: object
  step: object


PARTS = initial_state, project, recur
CELL = Cell(*PARTS, None, None, *one_step(*PARTS, None, None))
ALL_PARTS = *PARTS, recur_backward, parameter_gradients


def test_every_array_lies_on_the_mesh_as_xs_do():
  mesh = AbstractMesh((B,), ("data",), axis_types=(AxisType.Explicit,))

  def placed(shape, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  run = partial(unroll, CELL, adjoint=Autodiff())
  params, xs = Params(placed((D, H))), placed((T, B, D), None, "data")
  with jax.sharding.use_abstract_mesh(mesh):
    last, hs = jax.eval_shape(lambda p, xs: run(p, None, xs), params, xs)
    after = jax.eval_shape(lambda p, xs: CELL.step(p, None, xs[0]), params, xs)
  assert hs.sharding.spec[1] == "data"
  assert {x.sharding.spec[0] for x in (*last, *after)} == {"data"}


def test_every_feature_acts_on_an_array_without_a_last_axis(key):
  shapes = Params(np.zeros((D, H))), State(np.zeros(B), np.zeros((B, H)))
  params, state, xs = normal_like(key, (*shapes, np.zeros((T, B, D))))
  rates = State(np.full((T, B), 0.25), 0.5)
  expected, hs = state, []
  for t in range(T):
    acts = MASK[t] & (t < LENGTHS)
    n = jnp.where(RESET[t], 0, expected.n)
    h = jnp.where(RESET[t][:, None], 0, expected.h)
    after, *_ = recur(params, State(n, h), project(params, xs[t]))
    n, h = 0.25 * n + 0.75 * after.n, 0.5 * h + 0.5 * after.h
    expected = State(
      jnp.where(acts, n, expected.n),
      jnp.where(acts[:, None], h, expected.h),
    )
    hs.append(jnp.where(acts[:, None], h, 0))
  options = {"mask": MASK, "lengths": LENGTHS, "reset": RESET}
  found = unroll(
    CELL, params, state, xs, zoneout=rates, adjoint=Autodiff(), **options
  )
  assert worst(found, (expected, jnp.stack(hs))) < 1e-12


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_sequence_without_a_batch_has_the_gradient_of_autodiff(platform, key):
  cell = Cell(*ALL_PARTS, *one_step(*ALL_PARTS))
  shapes = Params(np.zeros((D, H))), State(np.zeros(()), np.zeros(H))
  args = normal_like(key, (*shapes, np.zeros((9, D))))

  def gradient(adjoint):
    f = weighed(partial(unroll, cell, adjoint=adjoint), key)
    return jax.grad(f, (0, 1, 2))(*args)

  with traced_for(platform):
    assert worst(gradient(Explicit()), gradient(Autodiff())) < 1e-12


def test_an_integer_in_the_state_is_named():
  def counting(params, batch_shape=()):
    zero = initial_state(params, batch_shape)
    return zero._replace(n=jnp.zeros(batch_shape, jnp.int32))

  def count(params, state, ax):
    after, *saved = recur(params, state._replace(n=ax[..., 0]), ax)
    return after._replace(n=state.n + 1), *saved

  parts = counting, project, count, recur_backward, parameter_gradients
  cell = Cell(*parts, *one_step(*parts))
  with pytest.raises(ValueError, match=r"^state\.n must be floats, got int32$"):
    unroll(cell, Params(jnp.ones((D, H))), None, jnp.ones((T, B, D)))


@pytest.mark.parametrize(
  ("what", "adjoint", "options"),
  [
    ("a mask", Explicit(), {"lengths": LENGTHS}),
    ("a reset", Autodiff(), {"reset": RESET}),
    ("recompute", Explicit("recompute"), {}),  # gives `recur` a time axis
  ],
)
def test_a_number_for_all_rows_is_refused_where_rows_differ(
  what, adjoint, options
):
  def counting(params, batch_shape=()):
    return initial_state(params, batch_shape)._replace(n=jnp.zeros(()))

  def count(params, state, ax):
    h = jnp.tanh(ax + state.n)
    return State(state.n + 1, h), 1 - h * h, ()

  def count_back(params, gates, residuals, d_state):
    da = d_state.h * gates
    return State(d_state.n + da.sum(), jnp.zeros_like(da)), da

  parts = counting, project, count, count_back, parameter_gradients
  cell = Cell(*parts, *one_step(*parts))
  args = cell, Params(jnp.ones((D, H))), None, jnp.ones((T, B, D))
  unroll(*args)
  message = f"^{what} needs a state whose arrays have the batch axes .*state.n"
  with pytest.raises(ValueError, match=message):
    unroll(*args, adjoint=adjoint, **options)
