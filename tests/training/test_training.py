from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax.language import (
  BatchingConfig,
  ModelConfig,
  Regularizers,
  language_model,
)
from lstm_jax.training import (
  OptimizerConfig,
  TrainState,
  init_state,
  make_ensemble_train_step,
  make_mesh,
  make_mesh_train_step,
  make_optimizer,
  make_train_step,
  train,
)
from lstm_jax.training.optimizer import Rule
from tests.draws import worst
from tests.training.small import EPOCH, MODEL, B, T, V, start, steps


@pytest.mark.everyday(2)
@pytest.mark.parametrize("rule", get_args(Rule))
def test_every_optimiser_learns_a_sequence_that_repeats(rule, key):
  rate = {"sgd": 0.3, "adagrad": 0.3}.get(rule, 0.03)
  update, state = start(key, optimizer=rule, learning_rate=rate, warmup_steps=5)
  losses = [float(m.loss) for _, m in steps(update, state, 100)]
  assert losses[0] > 1.5
  assert losses[-1] < 0.3


def test_an_epoch_carries_the_state_and_the_next_begins_at_zero(key):
  # So small a learning rate leaves the weights as they are.
  update, state = start(
    key, learning_rate=1e-30, warmup_steps=0, weight_decay=0.0
  )
  params = jax.tree.map(jnp.copy, state.params)
  losses = [float(m.loss) for _, m in steps(update, state, 8)]
  assert EPOCH.num_batches == 4
  carry, expected = MODEL.initial_state((B,)), []
  for tokens, targets in EPOCH.batches():
    nats, carry = MODEL.loss(params, carry, tokens, targets)
    expected.append(float(nats))
  assert np.allclose(losses, expected * 2, rtol=0, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("tied", [False, True])
def test_the_gradients_norms_are_those_of_each_part_before_clipping(tied, key):
  sizes = ModelConfig(embedding_size=5, hidden_size=5, num_layers=2, tied=tied)
  config = OptimizerConfig(clip_norm=0.1)  # below the norm of the gradient
  model, rule = language_model(sizes, V), make_optimizer(config, num_steps=9)
  params, carry = model.init(key), model.initial_state((B,))
  tokens, targets = EPOCH.batch(0)
  gradient = jax.grad(lambda p: model.loss(p, carry, tokens, targets)[0])(
    params
  )
  state = init_state(model, rule, params, B)
  _, metrics = make_train_step(model, rule)(state, tokens, targets)
  readout = [] if tied else [gradient.readout]
  parts = {
    "embedding": [gradient.embedding],
    "layer1": [*gradient.layers[0]],
    "layer2": [*gradient.layers[1]],
    "readout": [*readout, gradient.bias],
  }
  squares = {
    name: sum(float(np.square(leaf).sum()) for leaf in leaves)
    for name, leaves in parts.items()
  }
  assert metrics.grad_norms.keys() == squares.keys()
  for name, norm in metrics.grad_norms.items():
    assert float(norm) == pytest.approx(squares[name] ** 0.5, rel=1e-6)
  expected = sum(squares.values()) ** 0.5
  assert expected > config.clip_norm
  assert float(metrics.grad_norm) == pytest.approx(expected, rel=1e-6)


def test_equal_arguments_give_one_train_step_that_is_compiled_once(key):
  rule = make_optimizer(OptimizerConfig(), 100)
  first, again = (make_train_step(MODEL, rule) for _ in range(2))
  assert first is again
  state = init_state(MODEL, rule, MODEL.init(key), B)
  state, _ = first(state, *EPOCH.batch(0))
  compiled = first._cache_size()
  again(state, *EPOCH.batch(0))
  assert again._cache_size() == compiled
  assert make_train_step(MODEL, rule, ema_decay=0.5) is not first
  assert make_train_step(MODEL, rule, ema_decay=0.0) is first
  assert make_train_step(model=MODEL, optimizer=rule) is first


@pytest.mark.exhaustive
def test_an_optimizer_may_keep_one_array_in_two_places(key):
  """Its state may hold the weights themselves, or one of its arrays twice."""
  params = MODEL.init(key)
  for rule in optax.contrib.prodigy(), optax.scale_by_lbfgs(3):
    state = init_state(MODEL, rule, params, B)
    # No buffer can be donated twice.
    state = jax.jit(lambda state: state, donate_argnums=0)(state)
    assert worst(state.opt_state, rule.init(params)) == 0


@pytest.mark.exhaustive
def test_epochs_may_differ_in_batch_size(key):
  # So small a learning rate leaves the weights as they are.
  update, state = start(
    key, learning_rate=1e-30, warmup_steps=0, weight_decay=0.0
  )
  params = jax.tree.map(jnp.copy, state.params)
  tokens = np.arange(47, dtype=np.int32) % V
  batching = BatchingConfig(B, T, num_epochs=3, late_batch_size=5)
  epochs = list(batching.epochs(tokens, 0))
  found, expected = [], []
  for last, metrics in train(update, state, epochs):
    found.append((float(metrics.loss), int(metrics.num_tokens)))
    carry = last.carry[0].h.shape
  assert carry == (5, 5)  # late_batch_size, and H
  for epoch in epochs:
    carry = MODEL.initial_state(epoch.tokens.shape[1:])
    for inputs, targets in epoch.batches():
      nats, carry = MODEL.loss(params, carry, inputs, targets)
      expected.append((float(nats), targets.size))
  assert np.allclose(found, expected, rtol=0, atol=1e-6)


def test_an_epoch_may_fill_the_same_arrays_with_every_batch():
  """The step of a batch may run when the next batch is made."""
  arrays = np.zeros((2, T, B), np.int32)  # tokens and targets

  class Epoch:
    num_batches = 3

    def batch(self, index):
      arrays[:] = index
      return arrays[0], arrays[1]

  def update(state, *batch):
    return state._replace(step=state.step + 1), batch

  state = TrainState(0, None, None, None, None)
  batches = [batch for _, batch in train(update, state, [Epoch()])]
  for index, (tokens, targets, _) in enumerate(batches):
    assert (tokens == index).all() and (targets == index).all()


def test_noise_depends_on_the_seed_and_on_the_step(key):
  config = ModelConfig(embedding_size=3, hidden_size=5)
  noise = Regularizers(output_dropout=0.5)
  noisy = language_model(config, V, regularizers=noise)
  rule = make_optimizer(
    OptimizerConfig(learning_rate=1e-30, warmup_steps=0), 20
  )

  def losses(seed):
    state = init_state(noisy, rule, noisy.init(key), B)
    train_step, noise_key = make_train_step(noisy, rule), jax.random.key(seed)
    trained = steps(train_step, state, 8, noise_key)
    return [float(metrics.loss) for _, metrics in trained]

  first = losses(0)
  assert losses(0) == first and losses(1) != first
  assert first[:4] != first[4:]  # the same batches, other noise


def test_the_loss_of_a_step_is_that_without_penalties(key):
  def training_loss(params, carry, *_):
    nats = params.bias.sum() + 2  # the bias is 0 at first
    return nats + 5, (nats, carry)

  model, rule = MODEL._replace(training_loss=training_loss), optax.sgd(0.1)
  state = init_state(model, rule, MODEL.init(key), B)
  _, metrics = make_train_step(model, rule)(state, *EPOCH.batch(0))
  assert metrics.loss == 2


@pytest.mark.parametrize("ema_decay", [float("nan"), -0.5, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(ema_decay):
  rule, mesh = make_optimizer(OptimizerConfig(), 9), make_mesh({"data": 1})
  message = rf"^ema_decay must be in \[0, 1\), got {ema_decay}$"
  for make in (
    make_train_step,
    make_ensemble_train_step,
    partial(make_mesh_train_step, mesh, shardings=None),
  ):
    with pytest.raises(ValueError, match=message):
      make(model=MODEL, optimizer=rule, ema_decay=ema_decay)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_parameters_given_survive_the_first_update(averaged, key):
  params = MODEL.init(key)
  rule = make_optimizer(OptimizerConfig(), 10)
  state = init_state(MODEL, rule, params, B, averaged=averaged)
  next(steps(make_train_step(MODEL, rule), state, 10))
  assert worst(params, MODEL.init(key)) == 0


@pytest.mark.exhaustive
def test_the_norm_of_a_step_does_not_overflow_in_float16(key):
  def training_loss(params, carry, *_):
    # A gradient of 200 in 27 elements: the sum of its squares is 1.1e6, and the
    # largest float16 is 65,504.
    loss = 200 * params.embedding.sum()
    return loss, (loss, carry)

  model = MODEL._replace(training_loss=training_loss)
  half = jax.tree.map(lambda x: x.astype(jnp.float16), MODEL.init(key))
  rule = make_optimizer(OptimizerConfig(optimizer="sgd"), 10)
  state = init_state(model, rule, half, B)
  _, metrics = make_train_step(model, rule)(state, *EPOCH.batch(0))
  expected = 200 * half.embedding.size**0.5
  assert float(metrics.grad_norm) == pytest.approx(expected, rel=1e-6)


def test_training_continues_from_the_state_that_it_is_given(key):
  update, state = start(key)
  for last, _ in steps(update, state, 5):
    middle = jax.tree.map(jnp.copy, last)
  for whole, _ in steps(update, middle, 4):
    end = jax.tree.map(jnp.copy, whole)
  update, state = start(key)
  for again, _ in steps(update, state, 9):
    straight = jax.tree.map(jnp.copy, again)
  assert int(end.step) == 9
  assert worst(end, straight) == 0


@pytest.mark.exhaustive
def test_an_array_that_an_optimizer_keeps_is_not_donated(key):
  noise_key = jax.random.key(3)
  optimizer = optax.add_noise(0.1, 0.5, key=noise_key)
  model = language_model(ModelConfig(hidden_size=2), 3)
  step, tokens = make_train_step(model, optimizer), np.zeros((2, 1), np.int32)
  for _ in range(2):
    state = init_state(model, optimizer, model.init(key), 1)
    step(state, tokens, tokens)
  assert not noise_key.is_deleted()
