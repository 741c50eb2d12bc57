"""Many devices: every device its own streams, and its piece of the weights.

A mesh has the axes `data` (d devices) and `model` (m), and on it lie

  what                                      over data    over model
  tokens, targets [T, B]; h, c [B, H]       B            B, once more
  w_h [H, G·H], W [H, V], and w_x [H, G·H]
  of every layer but the lowest             copies       rows
  a tied E [V, H]                           copies       columns
  any other weight: biases, E, lowest w_x,
  and those whose rows m does not divide    copies       copies
  an optimiser's moments, an average        as their weight

from which `jit` partitions the update; no line of a cell knows of a device. A
key's bits do not depend on who draws them (`jax_threefry_partitionable`, on by
default), so the noise is that of one device, and so are losses and weights but
for rounding.

Each of the d·m devices runs the scans over its own B/(d·m) streams. Nothing is
sent in them. An update sends two things. Before the scans, what is kept in
pieces is gathered over `model`, once. After them, one all-reduce over all
devices adds up the gradients and the loss: as many numbers as there are
weights, but V·G·H instead of V·E + E·G·H where the lowest layer reads a table
E W_x, and E twice where it is tied. The readout adds up its gradient in a loop
over time, and for that the model needs `groups` (see
`grouped_linear_cross_entropy`).

So `data` is what scales, and `model` saves memory: of weights, moments and
average a device keeps 1/m, and no product is split. Split along H, h W_h would
need a sum or a gather over devices in every step of both scans. Moreover the
gates stand one after the other along G·H, so that halves of it hold whole
gates: left to itself, `jit` moved gates between devices 4 times a step forward
and 12 backward.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.train_step import TrainState, TrainStep, bare_train_step

DATA, MODEL = "data", "model"


def parse_mesh(text: str) -> dict[str, int]:
  """Return the sizes of a mesh's axes from text, such as data:4,model:2.

  Raises:
    ValueError: the text is not so, an axis is neither data nor model, stands
      twice, or its size is not an integer of at least 1.
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
  """Return the mesh of those sizes over all devices of all processes.

  Raises:
    ValueError: the product of the sizes is not the number of devices.
  """
  found = len(jax.devices())
  if math.prod(sizes.values()) != found:
    wanted = " × ".join(f"{axis} {size}" for axis, size in sizes.items())
    raise ValueError(
      f"a mesh of {wanted} must have as many devices as there are, "
      f"got {math.prod(sizes.values())} for {found}"
    )
  both = {DATA: 1, MODEL: 1} | dict(sizes)
  kinds = (AxisType.Auto, AxisType.Auto)
  return jax.make_mesh(tuple(both.values()), tuple(both), axis_types=kinds)


def check_sizes(
  sizes: Mapping[str, int], batch_size: int, hidden_size: int
) -> None:
  """Raise ValueError where streams or hidden units do not fill the axes."""
  devices, pieces = math.prod(sizes.values()), sizes.get(MODEL, 1)
  if batch_size % devices:
    raise ValueError(
      f"batch_size must be a multiple of the mesh's {devices} devices, "
      f"got {batch_size}"
    )
  if hidden_size % pieces:
    raise ValueError(
      f"hidden_size must be a multiple of the mesh's axis model, {pieces}, "
      f"got {hidden_size}"
    )


def state_shardings(
  mesh: Mesh, optimizer: optax.GradientTransformation, state: TrainState
) -> TrainState:
  """Return the sharding of every array of a train state, as the table says."""
  copies = NamedSharding(mesh, PartitionSpec())
  params = _params_shardings(mesh, state.params)
  streams = NamedSharding(mesh, PartitionSpec((DATA, MODEL)))
  average = None if state.average is None else params
  opt_state = optax.tree.map_params(
    optimizer,
    lambda _, sharding: sharding,
    state.opt_state,
    params,
    transform_non_params=lambda _: copies,
  )
  carry = jax.tree.map(lambda _: streams, state.carry)
  return TrainState._make((copies, params, average, opt_state, carry))


def _params_shardings(mesh: Mesh, params: LanguageParams) -> LanguageParams:
  copies = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec(MODEL, None))
  columns = NamedSharding(mesh, PartitionSpec(None, MODEL))
  tied = params.readout is None

  def split(leaf: jax.Array, axis: int) -> NamedSharding:
    if leaf.shape[axis] % mesh.shape[MODEL]:
      return copies
    return columns if axis else rows

  def of_layer(index: int, layer: Any) -> Any:
    own = jax.tree.map(lambda _: copies, layer)
    own = own._replace(w_h=split(layer.w_h, 0))
    return own._replace(w_x=split(layer.w_x, 0)) if index else own

  embedding = split(params.embedding, 1) if tied else copies
  readout = None if tied else split(params.readout, 0)
  layers = tuple(of_layer(*pair) for pair in enumerate(params.layers))
  return LanguageParams._make((embedding, layers, readout, copies))


def place(tree: Any, shardings: Any) -> Any:
  """Return arrays laid out as `shardings` says, each process placing its own.

  Args:
    tree: whole arrays, the same in every process; one that lies as it should
      already is returned as it is.
    shardings: a sharding for each of them.
  """

  def one(x, sharding):
    if isinstance(x, jax.Array) and x.sharding == sharding:
      return x  # which device_put would refuse, where it spans processes
    if sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )

  return jax.tree.map(one, tree, shardings)


def local(tree: Any) -> Any:
  """Return arrays of a mesh as whole ones on one device of this process.

  What reads them then runs in each process by itself. All processes must call
  this, since each holds pieces that the others need.
  """
  pieces = jax.tree.leaves(tree)
  copies = NamedSharding(pieces[0].sharding.mesh, PartitionSpec())
  whole = jax.jit(lambda leaves: leaves, out_shardings=copies)(pieces)
  here = [leaf.addressable_data(0) for leaf in whole]
  return jax.tree.unflatten(jax.tree.structure(tree), here)


def make_mesh_train_step(
  mesh: Mesh,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  key: jax.Array | None = None,
  *,
  shardings: TrainState,
  decay: float = 0.0,
) -> TrainStep:
  """Return `make_train_step` on a mesh: (state, tokens, targets) -> the same.

  The state passed in is donated, and the one that comes out lies as it did.
  Tokens and targets are whole blocks, the same in every process.

  Args:
    mesh: from `make_mesh`.
    model: made with as many `groups` as the mesh has devices.
    optimizer: as in `make_train_step`.
    key: likewise.
    shardings: of the state, from `state_shardings`.
    decay: as in `make_train_step`.
  """
  compiled = partition(mesh, model, optimizer, key, shardings, decay)
  block = block_sharding(mesh)

  def update(state: TrainState, tokens, targets):
    carry = place(state.carry, shardings.carry)  # zeros, as an epoch begins
    placed = place((tokens, targets), (block, block))
    return compiled(state._replace(carry=carry), *placed)

  return update


def block_sharding(mesh: Mesh) -> NamedSharding:
  """Return how tokens and targets [T, B] lie."""
  return NamedSharding(mesh, PartitionSpec(None, (DATA, MODEL)))


def partition(
  mesh: Mesh,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  key: jax.Array | None,
  shardings: TrainState,
  decay: float,
) -> Any:
  """Return the `jit` of `make_mesh_train_step`; its arguments lie right."""
  copies = NamedSharding(mesh, PartitionSpec())

  def training_loss(params, *rest):
    whole = jax.lax.with_sharding_constraint(params, copies)
    return model.training_loss(whole, *rest)

  gathering = model._replace(training_loss=training_loss)
  return jax.jit(
    bare_train_step(gathering, optimizer, key, decay),
    donate_argnums=0,
    out_shardings=(shardings, copies),
  )
