"""Gradients on a mesh of devices equal those of one device.

Under `jax.shard_map` with its default checks, and on a mesh with explicit axes.
"""

import json

import pytest

from tests.contract import EXHAUSTIVE, TABLE
from tests.processes import finish, start
from tests.sequence.on_mesh import adjoints

EXACT = 1e-12  # for sums in another order


@pytest.mark.programs
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name == "gru" else EXHAUSTIVE)
    for name in TABLE
  ],
)
def test_gradients_on_a_mesh_are_those_of_one_device(name, tmp_path):
  out = tmp_path / "found.json"
  process = start("tests.sequence.on_mesh", out, name, devices=2)
  ((status, _, errors),) = finish(process)
  assert status == 0, errors
  found = json.loads(out.read_text())[name]
  assert len(found["errors"]) == 2 * len(adjoints(TABLE[name].cell)) + 1
  assert max(found["errors"].values()) < EXACT, found["errors"]
  assert found["specs"] == ["P('data', None)", "P(None, 'data', None)"]
  assert found["collectives in loops"] == 0
