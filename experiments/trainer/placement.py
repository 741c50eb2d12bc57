"""Where a run computes: on one device, or on all of them as --mesh says."""

from typing import TypeVar

import jax
from jax.sharding import Mesh

from experiments.trainer.config import TrainConfig
from lstm_jax.training import (
  Average,
  TrainState,
  local,
  make_mesh,
  parse_mesh,
  place,
)

Tree = TypeVar("Tree")


def mesh_of(config: TrainConfig) -> Mesh | None:
  """Return the mesh of a run; None for one device.

  Raises:
    ValueError: the mesh has not as many devices as there are, or there are
      several processes and no mesh.
  """
  if config.mesh:
    return make_mesh(parse_mesh(config.mesh))
  if jax.process_count() > 1:
    raise ValueError(
      f"{jax.process_count()} processes share a training by --mesh: "
      f"pass --mesh=data:{len(jax.devices())}"
    )
  return None


def mesh_told(mesh: Mesh | None) -> str:
  """Return what the line on devices says of a mesh."""
  if not mesh:
    return ""
  sizes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  count = jax.process_count()
  return f": {sizes}, in {count} process{'es' * (count > 1)}"


def placed(
  shardings: TrainState | None, state: TrainState, average: Average | None
) -> tuple[TrainState, Average | None]:
  """Return what the updates go on from, as the mesh has it.

  Args:
    shardings: of the state, on the mesh; None for one device.
    state: on one device, or the host, of every process.
    average: of the weights, likewise, if there is one.
  """
  if not shardings:
    return state, average
  if average:
    average = place(average, Average._make((shardings.params, shardings.step)))
  return place(state, shardings), average


def whole(shardings: TrainState | None, tree: Tree) -> Tree:
  """Return arrays as evaluation and checkpoints read them, on one device."""
  return local(tree) if shardings else tree
