from typing import get_args

import jax
import jax.numpy as jnp
import optax
import pytest

from lstm_jax import gru, lstm, rnn
from lstm_jax.cells.platform import traced_for
from lstm_jax.language import ModelConfig, Regularizers, language_model
from lstm_jax.training import (
  OptimizerConfig,
  each_member,
  init_ensemble,
  init_state,
  make_ensemble_train_step,
  make_members_mesh,
  make_optimizer,
  make_train_step,
  member,
)
from lstm_jax.training.optimizer import Rule
from tests.draws import worst
from tests.training.small import EPOCH, MODEL, B, T, V, steps

STEPS = 9
NOISE = Regularizers(output_dropout=0.3, weight_drop=0.2)


def last(results):
  """Return the last (state, metrics); the states before it were donated."""
  *_, found = results
  return found


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  ("cell", "noise", "decay"),
  [
    (lstm, NOISE, 0.0),
    (gru, NOISE, 0.5),
    (lstm, None, 0.5),
    (rnn, None, 0.0),
  ],
)
def test_members_are_trained_as_if_alone(cell, noise, decay, key):
  check_members(cell, noise, decay, key)


@pytest.mark.exhaustive
def test_members_are_trained_as_if_alone_where_all_are_computed_at_once(key):
  """A GPU computes all members by `vmap`, a CPU one after the other."""
  with traced_for("cuda"):
    # Equal arguments share a compiled step. No other test has this decay: else
    # the step that it compiled for a CPU would be used here.
    check_members(lstm, NOISE, 0.25, key)


def check_members(cell, noise, decay, key):
  """Compare the members of an ensemble with models trained alone."""
  config = ModelConfig(cell, embedding_size=3, hidden_size=5, dtype=jnp.float64)
  model = language_model(config, V, regularizers=noise)
  rule = make_optimizer(
    OptimizerConfig(learning_rate=0.03, warmup_steps=2), STEPS
  )
  keys = jax.random.split(key, 2)
  params = jax.vmap(model.init)(keys)
  together = init_ensemble(model, rule, params, B, averaged=True)
  train_step = make_ensemble_train_step(model, rule, ema_decay=decay)
  noise_keys = None if noise is None else keys
  together, metrics = last(steps(train_step, together, STEPS, noise_keys))
  assert metrics.loss.shape == (2,) and int(together.step) == STEPS
  for i, k in enumerate(keys):
    # The initial weights still exist: the donated state had copies of them.
    weights = jax.tree.map(lambda p, i=i: p[i], params)
    alone = init_state(model, rule, weights, B, averaged=True)
    train_step = make_train_step(model, rule, ema_decay=decay)
    noise_key = None if noise is None else k
    alone, expected = last(steps(train_step, alone, STEPS, noise_key))
    assert worst(member(together, i), alone) < 1e-12
    assert worst(jax.tree.map(lambda m, i=i: m[i], metrics), expected) < 1e-12
  assert abs(metrics.loss[0] - metrics.loss[1]) > 1e-3


@pytest.mark.exhaustive
def test_an_index_without_a_member_is_an_error(key):
  model = language_model(ModelConfig(embedding_size=3, hidden_size=5), V)
  params = jax.vmap(model.init)(jax.random.split(key, 2))
  state = init_ensemble(
    model, make_optimizer(OptimizerConfig(), STEPS), params, B
  )
  for index in (2, -1):
    with pytest.raises(IndexError, match=rf"in \[0, 2\), got {index}"):
      member(state, index)


def test_each_member_is_a_tree_without_the_axis_of_members():
  numbers = jnp.arange(12.0).reshape(3, 2, 2)
  found = each_member({"w": numbers, "b": numbers[:, 0]})
  assert len(found) == 3
  for one, w in zip(found, numbers, strict=True):
    assert worst(one, {"w": w, "b": w[0]}) == 0


def test_keys_and_learning_rates_are_one_for_each_member(key):
  model = language_model(ModelConfig(embedding_size=3, hidden_size=5), V)
  rule = make_optimizer(OptimizerConfig(), STEPS)
  params = jax.vmap(model.init)(jax.random.split(key, 2))
  state = init_ensemble(model, rule, params, B)
  train_step = make_ensemble_train_step(model, rule)
  tokens = jnp.zeros((T, B), int)
  for keys, rates, message in (
    (key, None, r"keys must be one for each member, \[2\], got \(\)"),
    (jnp.arange(2), None, "^keys must be PRNG keys, got int64"),
    (None, 0.1, r"learning_rates must be one for .*, \[2\], got \(\)"),
    (None, [0.1], r"learning_rates must be one for .*, \[2\], got \(1,\)"),
    (None, jnp.ones(3), r"learning_rates must be .*, \[2\], got \(3,\)"),
  ):
    with pytest.raises(ValueError, match=message):
      train_step(state, tokens, tokens, keys, rates)


def test_equal_arguments_give_one_train_step():
  rule = optax.sgd(0.1)
  first = make_ensemble_train_step(MODEL, rule)
  assert make_ensemble_train_step(MODEL, rule, ema_decay=0.0) is first
  assert make_ensemble_train_step(MODEL, rule, mesh=None) is first
  assert make_ensemble_train_step(MODEL, rule, ema_decay=0.5) is not first


@pytest.mark.exhaustive
def test_learning_rates_may_be_a_list(key):
  rule = make_optimizer(OptimizerConfig(learning_rate=1.0), STEPS)
  train_step = make_ensemble_train_step(MODEL, rule)
  params = jax.vmap(MODEL.init)(jax.random.split(key, 2))
  after = []
  for rates in ([0.1, 0.2], jnp.array([0.1, 0.2])):
    state = init_ensemble(MODEL, rule, params, B)
    batch = EPOCH.batch(0)
    state, _ = train_step(state, *batch, learning_rates=rates)
    after.append(state.params)
  assert worst(*after) == 0
  assert worst(after[0], params) > 0.01


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_members_are_shared_by_one_device_or_more(count):
  message = f"^num_devices must be an integer ≥ 1, got {count}$"
  with pytest.raises(ValueError, match=message):
    make_members_mesh(count)


def test_members_are_shared_by_no_more_devices_than_there_are():
  assert dict(make_members_mesh(1).shape) == {"members": 1}
  count = jax.device_count()
  message = f"^num_devices must be at most .*, {count}, got {count + 1}$"
  with pytest.raises(ValueError, match=message):
    make_members_mesh(count + 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", get_args(Rule))
def test_members_have_their_own_learning_rates(name, key):
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.float64)
  model = language_model(config, V)

  def rule_at(rate):
    # The cosine and the warm-up are float32: their rounding would be seen.
    flat = {"warmup_steps": 0, "schedule": "constant"}
    return make_optimizer(
      OptimizerConfig(optimizer=name, learning_rate=rate, **flat), STEPS
    )

  # These rates multiply the updates of the ensemble, whose own rate is 1.
  rates = jnp.array([0.003, 0.02])
  params = jax.vmap(model.init)(jnp.stack([key, key]))
  together = init_ensemble(model, rule_at(1.0), params, B, averaged=True)
  ensemble_step = make_ensemble_train_step(model, rule_at(1.0), ema_decay=0.9)

  def train_step(state, tokens, targets, keys):
    return ensemble_step(state, tokens, targets, keys, rates)

  together, _ = last(steps(train_step, together, STEPS))
  for i, rate in enumerate(rates):
    optimizer = rule_at(float(rate))
    alone = init_state(model, optimizer, model.init(key), B, averaged=True)
    alone_step = make_train_step(model, optimizer, ema_decay=0.9)
    alone, _ = last(steps(alone_step, alone, STEPS))
    one = member(together, i)
    assert worst(one.params, alone.params) < 1e-12
    assert worst(one.average, alone.average) < 1e-12
