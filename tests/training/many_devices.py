"""What tests/training/test_sharding.py starts in processes of their own.

  python -m tests.training.many_devices simulated OUT
  python -m tests.training.many_devices joined OUT PORT PROCESSES ID
  python -m tests.training.many_devices queued OUT

The first compares meshes of eight simulated devices with a single device. The
second is one of PROCESSES that train on one mesh; process 0 compares that with
a training on its own device. The third reads what its training steps return
only after the last of them. Process 0 writes what is found to the file OUT.
"""

import json
import sys
from itertools import islice, repeat
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import projected_lstm
from lstm_jax.language import (
  ModelConfig,
  Regularizers,
  language_model,
  make_batches,
  readout,
)
from lstm_jax.training import (
  OptimizerConfig,
  each_member,
  find_collectives,
  gather,
  init_ensemble,
  init_state,
  make_ensemble_train_step,
  make_members_mesh,
  make_mesh,
  make_mesh_train_step,
  make_optimizer,
  make_train_step,
  on_one_device,
  parse_mesh,
  place,
  place_members,
  sharding,
  start_average,
  state_shardings,
  train,
  zero_carry,
)
from tests.draws import worst

V, E, H, B, T = 11, 5, 12, 16, 6  # a device of 8 has more than V tokens
LARGE = 40  # words, more than a device's tokens
UPDATES = 7  # an epoch has 3 batches: the state is set to zero twice more
# Training steps. Where no step waited for the one before, eight devices hung
# after 37 to 135 steps in each of 12 trials; two devices, after up to 1,733.
MANY = 500
EPOCH = make_batches(np.arange(B * T * 3 + 1, dtype=np.int32) ** 2 % V, B, T)
# Each model is (its ModelConfig, its vocabulary size).
DEEP = (
  ModelConfig(embedding_size=E, hidden_size=H, num_layers=2, dtype=jnp.float64),
  V,
)
TIED = (
  ModelConfig(embedding_size=H, hidden_size=H, tied=True, dtype=jnp.float64),
  V,
)
PROJECTED = (
  ModelConfig(
    projected_lstm, embedding_size=E, hidden_size=H, dtype=jnp.float64
  ),
  V,
)
WORDS = (
  ModelConfig(embedding_size=E, hidden_size=H, dtype=jnp.float64),
  LARGE,
)
NOISE = Regularizers(
  token_dropout=0.1,
  layer_dropout=0.2,
  output_dropout=0.3,
  weight_drop=0.2,
  zoneout_h=0.1,
  zoneout_c=0.1,
  ar_coef=1.0,
  tar_coef=1.0,
)


NOISE_SEED = 1


class Recorded:
  """A function compiled at its first call, and the text of its program."""

  def __init__(self, function):
    self._function, self._compiled, self.text = function, None, ""

  def __call__(self, *arguments):
    if not self._compiled:
      self._compiled = self._function.lower(*arguments).compile()
      self.text = self._compiled.as_text()
    return self._compiled(*arguments)


def start(config, mesh, groups):
  """Return (train step, its `Recorded` or None, the state to start from)."""
  model = language_model(*config, regularizers=NOISE, groups=groups)
  rule = make_optimizer(
    OptimizerConfig(learning_rate=0.01, warmup_steps=0), 100
  )
  params = model.init(jax.random.key(0))
  state = init_state(model, rule, params, B, averaged=True)
  decay = 0.0 if config[0].tied else 0.9  # 0: NT-ASGD, whose mean starts here
  if not decay:
    state = state._replace(average=start_average(state.average))
  if not mesh:
    return make_train_step(model, rule, ema_decay=decay), None, state
  shardings = state_shardings(mesh, state)
  made, partition = [], sharding.partition

  def record(*arguments):
    made.append(Recorded(partition(*arguments)))
    return made[0]

  with mock.patch.object(sharding, "partition", record):
    train_step = make_mesh_train_step(
      mesh, model, rule, shardings=shardings, ema_decay=decay
    )
  return train_step, made[0], place(state, shardings)


def trained(config, mesh=None):
  """Train a model, on one device or on a mesh.

  Returns:
    (losses and gradient norms, the last state without its carry, what is sent).
    What is sent is (collectives, and beside them the number of weights that a
    device holds), or None without a mesh.
  """
  groups = mesh.size if mesh else 1
  train_step, recorded, state = start(config, mesh, groups)
  before = jax.tree.leaves(state._replace(carry=None))
  metrics = []
  steps = islice(
    train(train_step, state, repeat(EPOCH), jax.random.key(NOISE_SEED)),
    UPDATES,
  )
  for state, metric in steps:  # noqa: B007
    metrics.append([float(metric.loss), float(metric.grad_norm)])
  found = state._replace(carry=None)
  sent = None
  if mesh:
    after = jax.tree.leaves(found)
    for old, new in zip(before, after, strict=True):
      assert old.is_deleted()  # donated
      assert new.sharding.is_equivalent_to(old.sharding, new.ndim)
    held = sum(
      leaf.addressable_data(0).size for leaf in jax.tree.leaves(state.params)
    )
    sent = find_collectives(recorded.text), held
    found = gather(found)
  return np.array(metrics), jax.tree.map(np.asarray, found), sent


def differences(config, mesh, one):
  """Return how far `trained` on a mesh is from one device, and what is sent.

  Args:
    config: of the model, and its vocabulary size.
    mesh: the devices that train.
    one: what `trained` returns without a mesh; None to train and return None.
  """
  losses, weights, sent = trained(config, mesh)
  if one is None:
    return None
  return [float(np.abs(losses - one[0]).max()), worst(weights, one[1]), sent]


def shared_members():
  """Compare eight members on four devices with the same on one.

  Returns:
    How far losses and weights are from one device, what is sent, and how far
    the members' last losses are apart.
  """
  model = language_model(*DEEP, regularizers=NOISE)
  rule = make_optimizer(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 100)
  keys = jax.random.split(jax.random.key(NOISE_SEED), 8)
  rates = jnp.linspace(0.001, 0.02, 8)
  params = jax.vmap(model.init)(keys)
  found = []
  for mesh in (None, make_members_mesh(4)):
    state = init_ensemble(model, rule, params, B, averaged=True)
    train_step = make_ensemble_train_step(model, rule, ema_decay=0.9, mesh=mesh)
    if mesh:
      compiled = train_step.__wrapped__
      arguments = place_members(state, mesh), *EPOCH.batch(0), keys, rates
      text = compiled.lower(*arguments).compile().as_text()
      sent = find_collectives(text)
    losses = []
    for index in range(UPDATES):
      batch = EPOCH.batch(index % EPOCH.num_batches)
      if index % EPOCH.num_batches == 0:
        state = state._replace(carry=zero_carry(state.carry, B))
      state, metrics = train_step(state, *batch, keys, rates)
      losses.append(np.asarray(metrics.loss))
    if mesh:
      leaf = state.params.readout
      assert {piece.data.shape[0] for piece in leaf.addressable_shards} == {2}
      assert compiled._cache_size() == 1  # new carries are placed first
      state = on_one_device(state)
    found.append((np.array(losses), jax.tree.map(np.asarray, state)))
  (one, weights), (four, shared) = found
  spread = float(np.ptp(one[-1]))  # the members differ
  return [float(np.abs(one - four).max()), worst(weights, shared), sent, spread]


def sent_for_words(mesh, groups):
  """Return what an update of WORDS sends, its readout in chunks of time."""
  # A chunk of the readout is one time step. With 8 groups, no table W_e W_x is
  # used: a group has fewer tokens than there are words.
  with mock.patch.object(readout, "MAX_LOGITS", LARGE * B // groups):
    train_step, recorded, state = start(WORDS, mesh, groups)
    train_step(state, *EPOCH.batch(0), jax.random.key(NOISE_SEED))
  return find_collectives(recorded.text)


def simulated():
  """Compare meshes with one device, and count what they send."""
  one = trained(DEEP)
  result = {"losses": one[0][:, 0].tolist()}
  for text in ("data:8", "data:4,model:2"):
    result[text] = differences(DEEP, make_mesh(parse_mesh(text)), one)
  # Four devices cannot share the H / 2 rows of a projected w_h.
  _, _, state = start(PROJECTED, make_mesh({"data": 2, "model": 4}), 8)
  result["projected"] = [
    leaf.sharding.is_fully_replicated for leaf in state.params.layers[0]
  ]
  result["members"] = shared_members()
  mesh = make_mesh({"data": 8})
  for groups in (8, 1):
    result[f"words in {groups} groups"] = sent_for_words(mesh, groups)
  return result


def joined(port, processes, index):
  """Train as one of several processes; the first compares with one device."""
  jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
  numbers = jnp.arange(16.0).reshape(8, 2)
  shared = place_members({"w": numbers}, make_members_mesh(int(processes)))
  for one, w in zip(each_member(shared), numbers, strict=True):
    assert worst(one, {"w": w}) == 0
  mesh = make_mesh({"data": int(processes) // 2, "model": 2})
  one = trained(TIED) if int(index) == 0 else None
  return differences(TIED, mesh, one)


def queued():
  """Take many training steps and only then read one result: their number."""
  mesh = make_mesh({"data": 8})
  model = language_model(ModelConfig(hidden_size=16), V, groups=8)
  optimizer = make_optimizer(OptimizerConfig(), MANY)
  params = model.init(jax.random.key(0))
  state = init_state(model, optimizer, params, batch_size=32)
  shardings = state_shardings(mesh, state)
  step = make_mesh_train_step(mesh, model, optimizer, shardings=shardings)
  state, tokens = place(state, shardings), np.zeros((64, 32), np.int32)
  for _ in range(MANY):
    state, _ = step(state, tokens, tokens)
  return int(state.step)


def main():
  mode, out, *arguments = sys.argv[1:]
  jax.config.update("jax_enable_x64", True)
  modes = {"simulated": simulated, "joined": joined, "queued": queued}
  result = modes[mode](*arguments)
  if jax.process_index() == 0:
    with open(out, "w") as file:
      json.dump(result, file)


if __name__ == "__main__":
  main()
