from itertools import islice, repeat

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
  make_batches,
)
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  OptimizerConfig,
  eval_params,
  has_state,
  init_state,
  is_nonmonotonic,
  list_checkpoints,
  make_optimizer,
  make_train_step,
  read_checkpoint,
  read_params,
  read_state,
  start_average,
  train,
)
from lstm_jax.training.averaging import init_average, update_average
from lstm_jax.training.optimizer import MAX_SKIPPED, learning_rate
from tests.draws import normal_like, worst

MODEL = language_model(ModelConfig(embedding_size=3, hidden_size=5), 9)
STREAMS = make_batches(np.arange(47, dtype=np.int32) % 9, 3, 4)


def start(key, **options):
  rule = make_optimizer(OptimizerConfig(**options), 100)
  state = init_state(MODEL, rule, MODEL.init(key), 3)
  return make_train_step(MODEL, rule), state


def steps(train_step, state, number, key=None):
  return islice(train(train_step, state, repeat(STREAMS), key), number)


@pytest.mark.parametrize("rule", ["adamw", "rmsprop", "sgd", "adagrad"])
def test_every_optimiser_learns_a_sequence_that_repeats(rule, key):
  rate = {"sgd": 0.3, "adagrad": 0.3}.get(rule, 0.03)
  update, state = start(key, optimizer=rule, learning_rate=rate, warmup_steps=5)
  losses = [float(m.loss) for _, m in steps(update, state, 100)]
  assert losses[0] > 1.5
  assert losses[-1] < 0.3


def test_an_epoch_carries_the_state_and_the_next_begins_at_zero(key):
  update, state = start(
    key, learning_rate=1e-30, warmup_steps=0, weight_decay=0.0
  )
  params = jax.tree.map(jnp.copy, state.params)
  losses = [float(m.loss) for _, m in steps(update, state, 8)]
  assert STREAMS.num_batches == 4
  carry, expected = MODEL.initial_state((3,)), []
  for tokens, targets in STREAMS.batches():
    nats, carry = MODEL.loss(params, carry, tokens, targets)
    expected.append(float(nats))
  assert np.allclose(losses, expected * 2, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradients_norms_are_those_of_each_part_before_clipping(tied, key):
  sizes = ModelConfig(embedding_size=5, hidden_size=5, num_layers=2, tied=tied)
  model, rule = language_model(sizes, 9), make_optimizer(OptimizerConfig(), 9)
  params, carry = model.init(key), model.initial_state((3,))
  tokens, targets = STREAMS.batch(0)
  gradient = jax.grad(lambda p: model.loss(p, carry, tokens, targets)[0])(
    params
  )
  state = init_state(model, rule, params, 3)
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
  assert float(metrics.grad_norm) == pytest.approx(
    sum(squares.values()) ** 0.5, rel=1e-6
  )


def test_an_update_that_is_skipped_changes_neither_weights_nor_average(key):
  rule = make_optimizer(OptimizerConfig(nonfinite="skip"), 20)
  state = init_state(MODEL, rule, MODEL.init(key), 3, averaged=True)
  update = make_train_step(MODEL, rule, ema_decay=0.5)
  *_, (state, _) = steps(update, state, 3)
  before = jax.tree.map(np.asarray, state)
  nothing = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
  after, metrics = update(state._replace(carry=nothing), *STREAMS.batch(0))
  assert jnp.isnan(metrics.grad_norm)
  assert after.step == before.step + 1
  assert worst(after.params, before.params) == 0
  assert worst(after.average, before.average) == 0
  assert worst(eval_params(after), after.params) > 0


def test_the_average_is_that_of_the_weights_after_each_update(key):
  rule = make_optimizer(OptimizerConfig(), 20)
  state = init_state(MODEL, rule, MODEL.init(key), 3, averaged=True)
  update = make_train_step(MODEL, rule, ema_decay=0.5)
  expected = jax.tree.map(np.asarray, MODEL.init(key))
  for step, (state, _) in enumerate(steps(update, state, 12)):  # noqa: B020
    rate = 1 - min(0.5, (1 + step) / (10 + step))
    expected = jax.tree.map(
      lambda a, p: (1 - rate) * a + rate * np.asarray(p),  # noqa: B023
      expected,
      state.params,
    )
  assert worst(eval_params(state), expected) < 1e-6
  assert worst(eval_params(state), state.params) > 1e-3
  plain = init_state(MODEL, rule, MODEL.init(key), 3)
  assert eval_params(plain) is plain.params


def test_the_mean_of_nt_asgd_is_that_of_the_weights_since_its_start(key):
  rule = make_optimizer(OptimizerConfig(warmup_steps=0, nonfinite="skip"), 100)
  state = init_state(MODEL, rule, MODEL.init(key), 3, averaged=True)
  train_step, since = make_train_step(MODEL, rule), []
  for step in range(1, 10):
    (state, _) = next(steps(train_step, state, 1))
    if step < 4:
      assert worst(eval_params(state), state.params) == 0
    if step == 4:
      state = state._replace(average=start_average(state.average))
    if step >= 4:
      since.append(jax.tree.map(np.asarray, state.params))
  assert int(state.average.num_averaged) == 6
  expected = jax.tree.map(lambda *p: np.mean(p, 0), *since)
  assert worst(eval_params(state), expected) < 1e-6
  # A step that is skipped does not count.
  nans = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
  state, _ = train_step(state._replace(carry=nans), *STREAMS.batch(1))
  assert int(state.average.num_averaged) == 6
  assert worst(eval_params(state), expected) < 1e-6
  assert worst(eval_params(state), state.params) > 1e-3


@pytest.mark.parametrize("ema_decay", [0.5, 0.0])
def test_an_average_survives_weights_that_are_nan(ema_decay, key):
  average = start_average(init_average(MODEL.init(key)))
  nans = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), average.params)
  step, finite = jnp.array(3), jnp.array(False)
  after = update_average(average, nans, step, finite, ema_decay)
  assert worst(after, average) == 0


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_the_average_of_bfloat16_weights_is_float32_from_the_start(
  ema_decay, key
):
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.bfloat16)
  model = language_model(config, 9)
  rule = make_optimizer(OptimizerConfig(), 20)
  first = init_state(model, rule, model.init(key), 3, averaged=True)
  dtypes = jax.tree.map(jnp.result_type, first)
  train_step = make_train_step(model, rule, ema_decay=ema_decay)
  state, _ = next(steps(train_step, first, 2))
  assert jax.tree.map(jnp.result_type, state.average) == dtypes.average
  averages = jax.tree.leaves(state.average.params)
  assert {leaf.dtype for leaf in averages} == {jnp.dtype("float32")}
  weights = jax.tree.leaves(eval_params(state))
  assert {leaf.dtype for leaf in weights} == {jnp.dtype("bfloat16")}


def test_equal_arguments_give_one_train_step_that_is_compiled_once(key):
  rule = make_optimizer(OptimizerConfig(), 100)
  first, again = (make_train_step(MODEL, rule) for _ in range(2))
  assert first is again
  state = init_state(MODEL, rule, MODEL.init(key), 3)
  state, _ = first(state, *STREAMS.batch(0))
  compiled = first._cache_size()
  again(state, *STREAMS.batch(0))
  assert again._cache_size() == compiled
  assert make_train_step(MODEL, rule, ema_decay=0.5) is not first


def test_a_loss_is_nonmonotonic_if_worse_than_the_best_before_the_last_n():
  losses = [5.0, 4.0, 3.0, 3.5, 2.9, 3.1, 3.2]
  found = [is_nonmonotonic(losses[: n + 1], 2) for n in range(len(losses))]
  # 3.1 is worse than the 3.0 of three losses before; 3.5 is too early to tell.
  assert found == [False] * 5 + [True, True]
  assert not is_nonmonotonic([1.0, 2.0], 1) and is_nonmonotonic(
    [1.0, 3.0, 2.0], 1
  )


def test_epochs_may_have_other_numbers_of_streams(key):
  update, state = start(
    key, learning_rate=1e-30, warmup_steps=0, weight_decay=0.0
  )
  params = jax.tree.map(jnp.copy, state.params)
  tokens = np.arange(47, dtype=np.int32) % 9
  epochs = list(BatchingConfig(3, 4, 3, late_batch_size=5).epochs(tokens, 0))
  found, expected = [], []
  for last, metrics in train(update, state, epochs):
    found.append((float(metrics.loss), int(metrics.num_tokens)))
    carry = last.carry[0].h.shape
  assert carry == (5, 5)
  for streams in epochs:
    carry = MODEL.initial_state(streams.tokens.shape[1:])
    for block, targets in streams.batches():
      nats, carry = MODEL.loss(params, carry, block, targets)
      expected.append((float(nats), targets.size))
  assert np.allclose(found, expected, atol=1e-6)


def test_noise_is_that_of_the_seed_and_of_the_step(key):
  config = ModelConfig(embedding_size=3, hidden_size=5)
  noise = Regularizers(output_dropout=0.5)
  noisy = language_model(config, 9, regularizers=noise)
  rule = make_optimizer(
    OptimizerConfig(learning_rate=1e-30, warmup_steps=0), 20
  )

  def losses(seed):
    state = init_state(noisy, rule, noisy.init(key), 3)
    train_step, noise_key = make_train_step(noisy, rule), jax.random.key(seed)
    trained = steps(train_step, state, 8, noise_key)
    return [float(metrics.loss) for _, metrics in trained]

  first = losses(0)
  assert losses(0) == first and losses(1) != first
  assert first[:4] != first[4:]  # the same blocks, another noise


def test_the_parameters_given_survive_the_first_update(key):
  params = MODEL.init(key)
  rule = make_optimizer(OptimizerConfig(), 10)
  state = init_state(MODEL, rule, params, 3)
  next(steps(make_train_step(MODEL, rule), state, 10))
  assert worst(params, MODEL.init(key)) == 0


def test_training_goes_on_where_the_state_stands(key):
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


def test_the_learning_rate_rises_falls_and_ends_at_a_hundredth():
  config = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
  rate = learning_rate(config, 50)
  found = np.array([float(rate(step)) for step in range(50)])
  assert np.allclose(found[:5], [0.4, 0.8, 1.2, 1.6, 2.0])
  assert (np.diff(found[4:]) < 0).all()
  assert 0.02 < found[-1] < 0.03
  constant = OptimizerConfig(
    learning_rate=2.0, warmup_steps=0, schedule="constant"
  )
  assert float(learning_rate(constant, 50)(49)) == 2.0
  assert 0 < float(learning_rate(config, 1)(0)) <= 2.0  # a single update


def test_gradients_are_clipped_by_element_and_by_norm():
  gradient = {"a": jnp.array([30.0, -40.0, 0.5])}
  params = {"a": jnp.zeros(3)}
  for options, expected in (
    ({"clip_value": 5.0, "clip_norm": 0.0}, [5, -5, 0.5]),
    ({"clip_norm": 1.0}, np.array([30, -40, 0.5]) / np.sqrt(2500.25)),
    ({"clip_norm": 0.0}, [30, -40, 0.5]),
  ):
    config = OptimizerConfig(
      optimizer="sgd",
      learning_rate=1.0,
      schedule="constant",
      warmup_steps=0,
      **options,
    )
    rule = make_optimizer(config, 10)
    updates, _ = rule.update(gradient, rule.init(params), params)
    assert np.allclose(-updates["a"], expected)


def test_ten_steps_in_a_row_that_are_not_finite_are_skipped_and_no_more():
  optimizer = make_optimizer(OptimizerConfig(nonfinite="skip"), 100)
  params = {"w": jnp.ones((2, 2))}
  state = optimizer.init(params)
  nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  for _ in range(MAX_SKIPPED):
    updates, state = optimizer.update(nan, state, params)
    assert not updates["w"].any()
  updates, _ = optimizer.update(nan, state, params)
  assert jnp.isnan(updates["w"]).all()


def test_equal_configurations_give_the_same_optimizer():
  optimizer = make_optimizer(OptimizerConfig(clip_value=5.0), 9)
  assert make_optimizer(OptimizerConfig(clip_value=5.0), 9) is optimizer
  assert make_optimizer(OptimizerConfig(clip_value=5.0), num_steps=9) is (
    optimizer
  )
  assert make_optimizer(OptimizerConfig(clip_value=5.0), 10) is not optimizer
  assert make_optimizer(OptimizerConfig(), 9) is not optimizer


def test_weight_decay_spares_the_biases():
  config = OptimizerConfig(
    learning_rate=0.1, weight_decay=0.5, warmup_steps=0, schedule="constant"
  )
  rule = make_optimizer(config, 10)
  params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = rule.update(still, rule.init(params), params)
  after = optax.apply_updates(params, updates)
  assert np.allclose(after["w"], 0.95)
  assert np.allclose(after["b"], 1)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"optimizer": "adam"}, "optimizer must be one of adamw, .*, got 'adam'"),
    ({"schedule": "linear"}, "schedule must be one of .*, got 'linear'"),
    (
      {"learning_rate": 0.0},
      r"learning_rate must be in \(0, inf\), got 0",
    ),
    (
      {"learning_rate": float("nan")},
      r"learning_rate must be in \(0, inf\), got n",
    ),
    ({"warmup_steps": -1}, r"warmup_steps must be in \[0, inf\), got -1"),
    ({"weight_decay": float("inf")}, "weight_decay must be in .* got inf"),
    ({"clip_norm": -1.0}, r"clip_norm must be in \[0, inf\), got -1"),
    ({"nonfinite": "halt"}, "nonfinite must be one of stop, skip, got 'halt'"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    OptimizerConfig(**options)


def test_a_checkpoint_returns_what_was_saved(key, tmp_path):
  first, second = (MODEL.init(k) for k in jax.random.split(key))
  _, state = start(key)
  writer = CheckpointWriter(tmp_path)
  writer.save(3, first, {"note": "first"})
  writer.save(8, second, {"note": "zwei → 2\n"}, state=state)
  writer.close()
  step, description = read_checkpoint(tmp_path)
  assert (step, description) == (8, {"note": "zwei → 2\n"})
  assert read_checkpoint(tmp_path, 3).description == {"note": "first"}
  params = read_params(tmp_path, 8, jax.eval_shape(MODEL.init, key))
  assert worst(params, second) == 0
  assert type(params) is type(second)
  back = read_state(tmp_path, 8, jax.eval_shape(lambda: state))
  assert worst(back, state) == 0
  assert jax.tree.structure(back) == jax.tree.structure(state)
  assert has_state(tmp_path, 8) and not has_state(tmp_path, 3)
  with pytest.raises(CheckpointError, match="holds no checkpoint of step 5"):
    read_checkpoint(tmp_path, 5)


def test_the_last_two_checkpoints_and_the_best_are_kept(key, tmp_path):
  params = MODEL.init(key)
  writer = CheckpointWriter(tmp_path)
  for step in (1, 2, 4, 6, 9):
    writer.save(step, params, {}, best=min(step, 2))
  writer.close()
  assert list_checkpoints(tmp_path) == [2, 6, 9]
  writer = CheckpointWriter(tmp_path)
  writer.delete_after(6)
  writer.save(7, params, {}, best=7)
  writer.close()
  assert list_checkpoints(tmp_path) == [6, 7]


def test_a_writer_saves_what_the_state_was_whatever_becomes_of_it(
  key, tmp_path
):
  update, state = start(key)
  expected = jax.tree.map(np.array, state)
  writer = CheckpointWriter(tmp_path)
  writer.save(0, state.params, {}, state=state)
  next(steps(update, state, 9))  # donates it, while it is written
  writer.close()
  back = read_state(tmp_path, 0, jax.eval_shape(lambda: expected))
  assert worst(back, expected) == 0


def test_a_checkpoint_older_than_the_newest_is_refused(key, tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(9, MODEL.init(key), {})
  with pytest.raises(CheckpointError, match="checkpoint of step 9 or later"):
    writer.save(9, MODEL.init(key), {})
  writer.close()


def test_a_checkpoint_of_another_configuration_is_refused(key, tmp_path):
  writer = CheckpointWriter(tmp_path)
  writer.save(1, MODEL.init(key), {})
  writer.close()
  for sizes, message in (
    (
      {"hidden_size": 6},
      r"layers.0.w_x must be float32 \(3, 24\), got float32 \(3, 20\)",
    ),
    ({"hidden_size": 5, "num_layers": 2}, r"layers.1.w_x must be .*got none"),
  ):
    other = language_model(ModelConfig(embedding_size=3, **sizes), 9)
    with pytest.raises(CheckpointError, match=message):
      read_params(tmp_path, 1, jax.eval_shape(other.init, key))


def test_a_folder_without_a_checkpoint_is_an_error_that_names_it(tmp_path):
  for directory in (tmp_path, tmp_path / "missing"):
    with pytest.raises(
      CheckpointError, match=f"{directory} holds no checkpoint"
    ):
      read_checkpoint(directory)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated", "removed"])
@pytest.mark.parametrize(
  "pattern", ["8/description/metadata", "8/params/*.oc*"]
)
def test_a_damaged_checkpoint_is_an_error_of_one_line(
  damage, pattern, key, tmp_path, collected
):
  writer = CheckpointWriter(tmp_path)
  writer.save(8, normal_like(key, MODEL.init(key)), {"note": "text"})
  writer.close()
  (path,) = tmp_path.glob(pattern)
  if damage == "removed":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:9])
  with pytest.raises(CheckpointError, match="cannot be read: ") as error:
    step, _ = read_checkpoint(tmp_path)
    read_params(tmp_path, step, jax.eval_shape(MODEL.init, key))
  assert "\n" not in str(error.value)
