"""No race is found while the kernels are interpreted.

The interpreter sees races between loads, stores and copies. It sees neither
races through the operands of a product nor a missing fence.
"""

import jax.numpy as jnp
import pytest

from tests.interpreting import NEEDS_KERNELS, interpreted
from tests.mosaic_gpu.layers import ALL_CELLS, CELLS, draw, results

pytestmark = [NEEDS_KERNELS, pytest.mark.usefixtures("threads")]

PRODUCTS = {"compute_dtype": jnp.bfloat16}
TWO = {"lstm": 128, "gru": 128, "rnn": 128}  # two warpgroups, in bfloat16
# 64 units more than one thread block can have.
CLUSTER = {"lstm": 192, "gru": 192, "rnn": 320}


def races_found(name, hidden, monkeypatch):
  """Return whether the interpreter found a race in each kernel that it ran."""
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
  from jax.experimental.pallas import mosaic_gpu as plgpu

  params, state = {"detect_races": True}, "RaceDetectionState"
  if hasattr(plgpu.InterpretGPUParams, "on_race"):  # not in jax 0.11
    params["on_race"] = "warn"  # an exception would end the program here
    state = "GPURaceDetectionState"
  # The interpreter makes a new state for each kernel, and keeps only the last.
  states, make = [], getattr(gpu_callbacks, state)

  def recorded(**arguments):
    states.append(make(**arguments))
    return states[-1]

  monkeypatch.setattr(gpu_callbacks, state, recorded)
  arguments = draw(CELLS[name], steps=3, hidden=hidden)
  with interpreted(**params):
    results("mosaic_gpu", CELLS[name], arguments, **PRODUCTS)
  return [state.races_found for state in states]


@ALL_CELLS
@pytest.mark.parametrize("sizes", [TWO, CLUSTER], ids=["block", "cluster"])
def test_no_race_is_found(name, sizes, monkeypatch):
  found = races_found(name, sizes[name], monkeypatch)
  assert found == [False, False]  # of the forward and of the backward


def test_a_copy_before_the_barrier_of_a_cluster_is_found(monkeypatch):
  from lstm_jax.mosaic_gpu import exchange

  def receive_too_early(self, memory):
    """Do what `receive` does, but wait for `all_sent` at the end."""
    for vector in range(self.vectors.shape[0]):
      source = memory.at[:, vector, :]
      target = self.vectors.at[vector]
      exchange.plgpu.copy_gmem_to_smem(source, target, self.all_read)
    exchange.plgpu.barrier_wait(self.all_read)
    exchange.plgpu.barrier_wait(self.all_sent)

  monkeypatch.setattr(exchange.Exchange, "receive", receive_too_early)
  assert races_found("rnn", CLUSTER["rnn"], monkeypatch) == [True, True]
