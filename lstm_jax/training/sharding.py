"""Training on a mesh of devices: each has a share of the batch and weights.

A mesh has the axes `data` (d devices) and `model` (m). The layout, for G gates:

  array                                     over data    over model
  tokens, targets [T, B] or [T, B, V];
  h, c [B, H]                               B            B, divided further
  w_h [H, G·H], W [H, V], and w_x [H, G·H]
  of every layer but the lowest             replicated   rows
  a tied W_e [V, H]                         replicated   columns
  any other weight: biases, W_e, lowest w_x,
  the w_h of slstm [heads, …], and those
  that m does not divide evenly             replicated   replicated
  an optimizer's moments, an average        as their weight, if of its shape

From this layout `jit` partitions the training step, without code in the cells.
A key's bits do not depend on the device that draws them
(`jax_threefry_partitionable`, on by default). So the noise equals that of one
device; losses and weights do as well, except for rounding.

Each of the d·m devices scans its own B/(d·m) rows, and the scans communicate
nothing. A training step communicates before and after them. Before, if m > 1,
the split weights are gathered over `model`, once. After, one all-reduce over
all devices adds up the gradients and the loss. It has an element for each
weight, except where the lowest layer reads rows of the table W_e W_x, embedding
times input weights (`language.model`). There, the V·G·H elements of the table's
gradient replace those of W_e, of W_x and of the layer's b, whose gradient is
the sum of the rows. A tied W_e has two gradients, as embedding and as readout.
The readout adds up the gradient of W in a loop over time; with the model's
`groups` that loop communicates nothing (`grouped_linear_cross_entropy`).

So `data` is the axis that scales, and `model` saves memory: a device keeps 1/m
of the split weights, their moments and their average. No product is split. If
h W_h were split along H, every time step of both scans would need a sum or a
gather over devices. Nor would it help to split the G·H columns: of [i, f, g,
o], one of two devices would have i and f, the other g and o. With that layout,
`jit` moved gates between devices 4 times a time step forward, 12 backward.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lstm_jax.cells.checks import check_count
from lstm_jax.cells.platform import is_cpu
from lstm_jax.language.drawing import check_key
from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.averaging import Average
from lstm_jax.training.train_step import (
  TrainState,
  TrainStep,
  uncompiled_train_step,
)

DATA, MODEL = "data", "model"


def parse_mesh(text: str) -> dict[str, int]:
  """Return the sizes of a mesh's axes from text, such as data:4,model:2.

  Raises:
    ValueError: an axis is neither data nor model or occurs twice, or its size
      is not an integer of at least 1.
  """
  sizes: dict[str, int] = {}
  for part in text.split(","):
    axis, colon, size = part.strip().partition(":")
    if axis not in (DATA, MODEL) or axis in sizes:
      raise ValueError(
        f"a mesh must be data:N, model:M or both, got {axis!r} in {text!r}"
      )
    if not colon or not size.isdecimal() or int(size) < 1:
      raise ValueError(
        f"the axis {axis} must have a size of at least 1, as in {axis}:2, "
        f"got {part.strip()!r}"
      )
    sizes[axis] = int(size)
  return sizes


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
  """Return the mesh of the given sizes over all devices of all processes.

  Raises:
    ValueError: an axis is neither data nor model, its size is not an integer of
      at least 1, or the product of the sizes is not the number of devices.
  """
  sizes, num_devices = _check_axes(sizes), len(jax.devices())
  if math.prod(sizes.values()) != num_devices:
    axes = " × ".join(f"{axis} {size}" for axis, size in sizes.items())
    raise ValueError(
      f"a mesh of {axes} needs {math.prod(sizes.values())} devices, "
      f"got {num_devices}"
    )
  both = {DATA: 1, MODEL: 1} | dict(sizes)
  kinds = (AxisType.Auto, AxisType.Auto)
  return jax.make_mesh(tuple(both.values()), tuple(both), axis_types=kinds)


def check_mesh(
  sizes: Mapping[str, int], batch_size: int, hidden_size: int
) -> None:
  """Raise ValueError unless axes are valid, d·m divides B, and m divides H.

  With another H, no w_h or W is split, except in `projected_lstm` (of P rows).
  """
  sizes = _check_axes(sizes)
  batch_size = check_count("batch_size", batch_size)
  num_devices, num_splits = math.prod(sizes.values()), sizes.get(MODEL, 1)
  if batch_size % num_devices:
    raise ValueError(
      f"batch_size must be a multiple of the mesh's {num_devices} devices, "
      f"got {batch_size}"
    )
  if check_count("hidden_size", hidden_size) % num_splits:
    raise ValueError(
      "hidden_size must be a multiple of the mesh's axis model, "
      f"{num_splits}, got {hidden_size}"
    )


def _check_axes(sizes: Mapping[str, int]) -> dict[str, int]:
  """Return the sizes as Python ints; raise ValueError if one is not valid."""
  unknown = sorted(set(sizes) - {DATA, MODEL})
  if unknown:
    raise ValueError(f"axes of a mesh are data and model, got {unknown}")
  name = "the size of the axis"
  return {k: check_count(f"{name} {k}", n) for k, n in sizes.items()}


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
  """Return the sharding of each array, as the module's docstring lists them."""
  replicated = NamedSharding(mesh, PartitionSpec())
  batch = NamedSharding(mesh, PartitionSpec((DATA, MODEL)))
  params = _params_shardings(mesh, state.params)
  average = Average._make((params, replicated)) if state.average else None
  weights = jax.tree.leaves_with_path(state.params)
  names = [(path, weight.shape) for path, weight in weights]
  own = dict(zip(names, jax.tree.leaves(params), strict=True))

  def of_moment(path: tuple[Any, ...], moment: Any) -> NamedSharding:
    # The path of a weight ends the paths of its moments.
    ends = ((path[k:], np.shape(moment)) for k in range(len(path)))
    return next((own[end] for end in ends if end in own), replicated)

  opt_state = jax.tree.map_with_path(of_moment, state.opt_state)
  carry = jax.tree.map(lambda c: batch if c.ndim else replicated, state.carry)
  return TrainState._make((replicated, params, average, opt_state, carry))


def _params_shardings(mesh: Mesh, params: LanguageParams) -> LanguageParams:
  replicated = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec(MODEL, None))
  columns = NamedSharding(mesh, PartitionSpec(None, MODEL))
  tied = params.readout is None

  def split(leaf: jax.Array, axis: int) -> NamedSharding:
    uneven = leaf.shape[axis] % mesh.shape[MODEL]
    return replicated if uneven else (rows, columns)[axis]

  def layer_shardings(index: int, layer: Any) -> Any:
    shardings = jax.tree.map(lambda _: replicated, layer)
    names = {"w_h"} if index == 0 else {"w_h", "w_x"}
    matrices = {
      name: split(leaf, 0)
      for name, leaf in zip(layer._fields, layer, strict=True)
      if name in names and getattr(leaf, "ndim", 0) == 2
    }
    return shardings._replace(**matrices)

  embedding = split(params.embedding, 1) if tied else replicated
  readout = None if tied else split(params.readout, 0)
  layers = tuple(layer_shardings(*pair) for pair in enumerate(params.layers))
  return LanguageParams._make((embedding, layers, readout, replicated))


def place(tree: Any, shardings: Any) -> Any:
  """Return arrays laid out by `shardings`; each process places its own part.

  Args:
    tree: whole arrays, the same in every process. An array that has its
      sharding already is returned as it is.
    shardings: a sharding for each array.
  """

  def place_array(x, sharding):
    if isinstance(x, jax.Array) and x.sharding == sharding:
      return x  # device_put refuses an array that spans processes
    if sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )

  return jax.tree.map(place_array, tree, shardings)


def gather(tree: Any) -> Any:
  """Return arrays of a mesh as whole arrays on one device of this process.

  A program that reads them then runs in each process by itself. All processes
  must call this, since each holds parts that the others need.
  """
  leaves, structure = jax.tree.flatten(tree)
  replicated = NamedSharding(leaves[0].sharding.mesh, PartitionSpec())
  whole = jax.jit(_same, out_shardings=replicated)(leaves)
  return jax.tree.unflatten(
    structure, [leaf.addressable_data(0) for leaf in whole]
  )


def _same(leaves: list[jax.Array]) -> list[jax.Array]:
  """Return the arrays; one function, so that `gather` compiles once."""
  return leaves


def make_mesh_train_step(
  mesh: Mesh,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  shardings: TrainState,
  ema_decay: float = 0.0,
) -> TrainStep:
  """Return the step of `make_train_step` on a mesh, with the same signature.

  The state passed in is donated, and the state returned has the same layout.
  Tokens and targets are whole batches, the same in every process.

  Args:
    mesh: from `make_mesh`.
    model: made with as many `groups` as the mesh has devices.
    optimizer: as in `make_train_step`.
    shardings: of the state, from `state_shardings`.
    ema_decay: as in `make_train_step`.

  Raises:
    ValueError: ema_decay is not in [0, 1); or, by the step, the key is not of
      JAX's default kind.
  """
  compiled = partition(mesh, model, optimizer, shardings, ema_decay)
  sharding = tokens_sharding(mesh)
  replicated = NamedSharding(mesh, PartitionSpec())

  def train_step(state: TrainState, tokens, targets, key=None):
    # At the first step of an epoch the carry is new zeros, on one device.
    carry = place(state.carry, shardings.carry)
    placed = place((tokens, targets), (sharding, sharding))
    if key is not None:
      check_key(key)
      # `place` takes what NumPy can hold: no typed keys.
      key = place(jax.random.key_data(key), replicated)
    if is_cpu():
      # With several steps in the queue, CPU devices can wait forever, one for
      # another that never starts (jax 0.10.2: after less than 2,000 steps).
      jax.block_until_ready(state.step)
    return compiled(state._replace(carry=carry), *placed, key)

  return train_step


def tokens_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of tokens [T, B], and targets [T, B] or [T, B, V]."""
  return NamedSharding(mesh, PartitionSpec(None, (DATA, MODEL)))


def partition(
  mesh: Mesh,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
  ema_decay: float,
) -> Any:
  """Return the jitted function inside `make_mesh_train_step`.

  Its arguments must have their shardings already. Its key is an array, from
  `jax.random.key_data`, or None.
  """
  replicated = NamedSharding(mesh, PartitionSpec())

  def training_loss(params, *rest):
    whole = jax.lax.with_sharding_constraint(params, replicated)
    return model.training_loss(whole, *rest)

  gathering = model._replace(training_loss=training_loss)
  train_step = uncompiled_train_step(gathering, optimizer, ema_decay)

  def with_key_data(state, tokens, targets, key_data):
    key = None if key_data is None else jax.random.wrap_key_data(key_data)
    return train_step(state, tokens, targets, key)

  return jax.jit(
    with_key_data, donate_argnums=0, out_shardings=(shardings, replicated)
  )
