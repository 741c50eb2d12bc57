"""Where a run computes: on one device, or on all of them as --mesh says."""

from typing import TypeVar

import jax
import optax
from jax.sharding import Mesh

from experiments.config import TrainConfig
from lstm_jax.language import LanguageModel, LanguageParams
from lstm_jax.training import (
  TrainState,
  init_state,
  local,
  make_mesh,
  make_mesh_update,
  make_update,
  parse_mesh,
  place,
  state_shardings,
)
from lstm_jax.training.update import Update

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


def begin(
  config: TrainConfig,
  mesh: Mesh | None,
  model: LanguageModel,
  rule: optax.GradientTransformation,
  params: LanguageParams,
  key: jax.Array,
) -> tuple[TrainState, Update]:
  """Return the state before the first update, where it belongs, and the update.

  Args:
    config: of the run.
    mesh: from `mesh_of`.
    model: of the run.
    rule: its optimiser.
    params: initial weights, the same in every process.
    key: of the noise.
  """
  averaged = config.average > 0
  state = init_state(model, rule, params, config.num_streams, averaged=averaged)
  if not mesh:
    return state, make_update(model, rule, key, decay=config.average)
  shardings = state_shardings(mesh, rule, state)
  update = make_mesh_update(
    mesh, model, rule, key, shardings=shardings, decay=config.average
  )
  return place(state, shardings), update


def whole(mesh: Mesh | None, params: Tree) -> Tree:
  """Return weights as evaluation and sampling read them, on one device."""
  return local(params) if mesh else params
