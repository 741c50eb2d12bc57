"""Train S models in one program: an ensemble with an axis S of members.

Every member sees the same batches and follows the same schedule; the members
differ in their initial weights, their dropout masks and other noise, and, if
wanted, their learning rates. An ensemble's `TrainState` has the axis S in front
of every array but the step, and `train` runs it as it runs one model.

Several devices can share an ensemble: with `make_members_mesh`, each trains its
share of the members, and the devices communicate nothing. Within a device, a
GPU computes all members at once (`vmap`), which keeps it busy. A CPU computes
one after another (`lax.map`), which is faster at every size measured. What one
training step of eight members takes on two cores (B 32, T 64, V 65, float32,
milliseconds):

              one device           two devices
              vmap      lax.map    vmap      lax.map
  lstm H 32     29           24      21           17
       H 64     70           46      35           30
       H 128   172          115     127           88
       H 256   396          367     356          283
       H 512  1592         1391    1163          982
  gru  H 128   169          107     108           71

(2 cores of an AMD EPYC, jax 0.10.2; medians of 7 rounds, 3 at H 512.)
"""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from operator import itemgetter
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lstm_jax.cells.caching import one_at_a_time
from lstm_jax.cells.checks import check_count
from lstm_jax.cells.platform import is_cpu
from lstm_jax.language.model import LanguageModel, LanguageParams
from lstm_jax.training.sharding import gather, place
from lstm_jax.training.train_step import (
  TrainState,
  TrainStep,
  init_state,
  uncompiled_train_step,
)

# The axis S of each field of a state (step, params, average, opt_state, carry):
# all members share the step.
AXES = TrainState._make((None, 0, 0, 0, 0))
MEMBERS = "members"  # the mesh axis over which S is divided
DIVIDED, SHARED = PartitionSpec(MEMBERS), PartitionSpec()

Tree = TypeVar("Tree")


def make_members_mesh(num_devices: int) -> Mesh:
  """Return a mesh of the first devices, which share the members.

  Raises:
    ValueError: num_devices is not an integer ≥ 1, or there are fewer devices.
  """
  check_count("num_devices", num_devices)
  if num_devices > jax.device_count():
    raise ValueError(
      "num_devices must be at most the number of all devices, "
      f"{jax.device_count()}, got {num_devices}"
    )
  kinds = (AxisType.Auto,)
  return jax.make_mesh((num_devices,), (MEMBERS,), axis_types=kinds)


def over_members(
  f: Callable[[Any, Any], Any], mesh: Mesh | None = None
) -> Callable[[Any, Any], Any]:
  """Return a function that computes f for all members of an ensemble.

  Args:
    f: (member, shared) -> result, all of them trees of arrays.
    mesh: the devices that share the members, from `make_members_mesh`; their
      number must divide S. None for one device.

  Returns:
    (members, shared) -> results: the arrays of members and of results have an
    axis S in front; those of `shared` are the same for each member.
  """

  def compute_members(members, shared):
    if is_cpu():
      return lax.map(lambda own: f(own, shared), members)
    return jax.vmap(f, in_axes=(0, None))(members, shared)

  if mesh is None:
    return compute_members
  return jax.shard_map(
    compute_members, mesh=mesh, in_specs=(DIVIDED, SHARED), out_specs=DIVIDED
  )


def members_shardings(members: Tree, mesh: Mesh) -> Tree:
  """Return the sharding of each array of the members of an ensemble.

  Args:
    members: a tree of arrays with an axis S in front; those without axes are
      the same for each member.
    mesh: the devices, from `make_members_mesh`.
  """
  divided, shared = NamedSharding(mesh, DIVIDED), NamedSharding(mesh, SHARED)
  return jax.tree.map(lambda leaf: divided if leaf.ndim else shared, members)


def place_members(members: Tree, mesh: Mesh) -> Tree:
  """Return the members of an ensemble, each on the device that it belongs to.

  Args:
    members: as in `members_shardings`.
    mesh: the devices, from `make_members_mesh`.

  Raises:
    ValueError: the number of devices does not divide the number of members.
  """
  return place(members, members_shardings(members, mesh))


def init_ensemble(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  params: LanguageParams,
  batch_size: int,
  *,
  averaged: bool = False,
) -> TrainState:
  """Return the ensemble's state before the first training step.

  Args:
    model: the model of every member.
    optimizer: the optimizer of every member.
    params: the members' weights, [S, ...], as `jax.vmap(model.init)(keys)`
      makes them.
    batch_size: B of the batches.
    averaged: whether each member keeps an average of its weights.
  """

  def init_member(params):
    return init_state(model, optimizer, params, batch_size, averaged=averaged)

  return jax.vmap(init_member, out_axes=AXES)(params)


def on_one_device(members: Tree) -> Tree:
  """Return all members of an ensemble on the first device of this process.

  If several processes share the members, all must call this, as with `gather`.
  """
  shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(members)]
  if all(s is None or s.is_fully_addressable for s in shardings):
    return jax.device_put(members, jax.local_devices()[0])
  return gather(members)  # device_put refuses arrays that span processes


def each_member(members: Tree) -> list[Tree]:
  """Return the trees of all members, without the axis S, on the first device.

  If several processes share the members, all must call this.

  Args:
    members: a tree of arrays with the axis S in front.
  """
  whole = on_one_device(members)
  indices = range(_num_members(whole))
  return [jax.tree.map(itemgetter(index), whole) for index in indices]


def _num_members(members: Tree) -> int:
  """Return S, the size of the first axis of the arrays of members."""
  return len(jax.tree.leaves(members)[0])


def make_ensemble_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float = 0.0,
  mesh: Mesh | None = None,
) -> TrainStep:
  """Return the compiled training step of all members.

  Equal arguments give the same function, which is compiled once.

  Args:
    model: as in `make_train_step`.
    optimizer: as in `make_train_step`.
    ema_decay: as in `make_train_step`.
    mesh: the devices that share the members, from `make_members_mesh`; None for
      one device.

  Returns:
    (state, tokens [T, B], targets, keys=None, learning_rates=None) -> (state,
    metrics, each [S]). keys [S] draw each member's noise. learning_rates [S]
    scale each member's updates: pass them with an optimizer whose own peak
    learning rate is 1. The state passed in is donated.

    It raises ValueError where keys or learning_rates are not [S], keys are not
    PRNG keys, or the number of the mesh's devices does not divide S.

  Raises:
    ValueError: ema_decay is not in [0, 1).
  """
  return _compiled_train_step(model, optimizer, ema_decay, mesh)


# By position: to `lru_cache`, an omitted keyword differs from its default.
@one_at_a_time  # else two threads could get two functions
@lru_cache(maxsize=64)
def _compiled_train_step(model, optimizer, ema_decay, mesh):
  train_alone = uncompiled_train_step(model, optimizer, ema_decay)
  shardings: Any = None
  if mesh:
    divided, shared = NamedSharding(mesh, DIVIDED), NamedSharding(mesh, SHARED)
    shardings = TrainState._make((shared, *[divided] * 4)), divided

  @partial(jax.jit, donate_argnums=0, out_shardings=shardings)
  def train_step(
    state: TrainState, tokens, targets, keys=None, learning_rates=None
  ):
    def step_member(own, shared):
      fields, key, learning_rate = own
      step, tokens, targets = shared
      train_member = train_alone
      if learning_rate is not None:
        scaled = _scaled(optimizer, learning_rate)
        train_member = uncompiled_train_step(model, scaled, ema_decay)
      before = TrainState(step, *fields)
      (_, *fields), metrics = train_member(before, tokens, targets, key)
      return fields, metrics

    step, *fields = state
    num_members = _num_members(state.params)
    keys = _per_member("keys", keys, num_members)
    if keys is not None and not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
      raise ValueError(f"keys must be PRNG keys, got {keys.dtype}")
    learning_rates = _per_member("learning_rates", learning_rates, num_members)
    fields, metrics = over_members(step_member, mesh)(
      (fields, keys, learning_rates), (step, tokens, targets)
    )
    return TrainState(step + 1, *fields), metrics

  if mesh is None:
    return train_step

  @wraps(train_step)
  def placed_step(state, *args, **kwargs):
    # The state of the first step, and the zero carry of a new epoch, lie on
    # one device. Unless they are placed first, the step is compiled once more.
    return train_step(place_members(state, mesh), *args, **kwargs)

  return placed_step


def _per_member(name: str, values: Any, size: int) -> jax.Array | None:
  """Return values as an array [S], one for each member; or None for None.

  Raises:
    ValueError: the array is not [S].
  """
  if values is None:
    return None
  values = jnp.asarray(values)
  if values.shape != (size,):
    raise ValueError(
      f"{name} must be one for each member, [{size}], got {values.shape}"
    )
  return values


def _scaled(
  optimizer: optax.GradientTransformation, factor: jax.Array
) -> optax.GradientTransformation:
  """Return the optimizer with its updates multiplied by a factor."""

  def update(gradient, state, params=None):
    updates, state = optimizer.update(gradient, state, params)
    return optax.tree.scale(factor, updates), state

  return optax.GradientTransformation(optimizer.init, update)


def member(state: TrainState, index: int) -> TrainState:
  """Return the state of one member of an ensemble.

  Raises:
    IndexError: the index is not in [0, S).
  """
  step, *rest = state
  num_members = _num_members(state.params)
  if not 0 <= index < num_members:
    raise IndexError(f"index must be in [0, {num_members}), got {index}")
  return TrainState(step, *jax.tree.map(lambda leaf: leaf[index], rest))
