"""Gradients on a mesh of devices equal those of one device.

Under `jax.shard_map` with its default checks, and on a mesh with explicit axes.
"""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lstm_jax import rnn, unroll
from tests.contract import TABLE
from tests.processes import finish, start
from tests.sequence.on_mesh import adjoints

EXACT = 1e-12  # for sums in another order


@pytest.mark.exhaustive
@pytest.mark.programs
def test_gradients_on_a_mesh_are_those_of_one_device(tmp_path):
  out = tmp_path / "found.json"
  process = start("tests.sequence.on_mesh", out, *TABLE, devices=2)
  ((status, _, errors),) = finish(process, timeout=500)
  assert status == 0, errors
  results = json.loads(out.read_text())
  assert [*results] == [*TABLE]
  for name, found in results.items():
    check(name, found)


def test_resets_may_be_the_only_array_on_a_mesh(key):
  params, xs = rnn.init(key, 2, 3), jnp.ones((5, 1, 2))
  reset = jnp.arange(5)[:, None] == 2
  rows = PartitionSpec(None, "data")
  placed = jax.device_put(
    reset, NamedSharding(jax.make_mesh((1,), ("data",)), rows)
  )

  @jax.grad
  def gradient(params, reset):
    return unroll(rnn, params, None, xs, reset=reset)[1].sum()

  found, expected = gradient(params, placed), gradient(params, reset)
  assert jnp.allclose(found.w_h, expected.w_h, atol=EXACT)


def check(name, found):
  # Errors are differences from one device. Each adjoint has two: one under
  # shard_map, one on explicit axes. Others: 3 of the state and its cotangents;
  # for the LSTM also 2 of a model, 1 of divided time steps, 16 of both
  # directions.
  others = 3 + (3 + 2 * 2**3 if name == "lstm" else 0)
  assert len(found["errors"]) == 2 * len(adjoints(TABLE[name].cell)) + others
  assert all(e < EXACT for e in found["errors"].values()), found["errors"]
  # Of the last state [B, H], the outputs [T, B, H], and the cotangents of all
  # states [T + 1, B, H].
  last, every = "P('data', None)", "P(None, 'data', None)"
  assert found["specs"] == [last, every, every]
  assert found["collectives in loops"] == 0
