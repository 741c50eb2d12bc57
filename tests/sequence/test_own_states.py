"""A cell of one's own with the state (n [...], h [..., H]), on a mesh.

The first array of the state has batch axes alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lstm_jax import Autodiff, unroll
from lstm_jax.cells.cell import one_step
from tests.draws import B, D, H, T


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
  return State(n, jnp.tanh(ax + n[..., None])), ax, ()  # gates, residuals


class Cell(NamedTuple):
  initial_state: object
  project: object
  recur: object
  forward: object
  backward: object
  step: object


PARTS = initial_state, project, recur
CELL = Cell(*PARTS, *one_step(*PARTS, None, None))  # without a backward


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
