import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import (
  OptimizerConfig,
  eval_params,
  init_state,
  is_nonmonotonic,
  make_optimizer,
  make_train_step,
  start_average,
)
from lstm_jax.training.averaging import init_average, update_average
from tests.draws import worst
from tests.training.small import EPOCH, MODEL, B, V, steps


@pytest.mark.exhaustive
def test_an_update_that_is_skipped_changes_neither_weights_nor_average(key):
  optimizer = make_optimizer(OptimizerConfig(nonfinite="skip"), 20)
  state = init_state(MODEL, optimizer, MODEL.init(key), B, averaged=True)
  train_step = make_train_step(MODEL, optimizer, ema_decay=0.5)
  *_, (state, _) = steps(train_step, state, 3)
  before = jax.tree.map(np.asarray, state)  # kept: the step donates it
  nans = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
  after, metrics = train_step(state._replace(carry=nans), *EPOCH.batch(0))
  assert jnp.isnan(metrics.grad_norm)
  assert after.step == before.step + 1
  assert worst(after.params, before.params) == 0
  assert worst(after.average, before.average) == 0
  assert worst(eval_params(after), after.params) > 0


@pytest.mark.exhaustive
def test_a_gradient_that_is_not_finite_changes_neither_carry_nor_average(key):
  optimizer = make_optimizer(OptimizerConfig(nonfinite="skip"), 20)
  state = init_state(MODEL, optimizer, MODEL.init(key), B, averaged=True)
  train_step = make_train_step(MODEL, optimizer, ema_decay=0.5)
  *_, (state, _) = steps(train_step, state, 3)
  nans = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
  # Kept, since the step donates the state.
  carry, average = jax.tree.map(np.asarray, (state.carry, state.average))
  after, metrics = train_step(state._replace(params=nans), *EPOCH.batch(0))
  assert jnp.isnan(metrics.grad_norm)
  assert worst(after.carry, carry) == 0
  assert worst(after.average, average) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_norm_that_overflows_changes_nothing_but_counts(clip_norm, key):
  # The gradient is finite, but the squares in its norm overflow in float32.
  def training_loss(*args):
    objective, rest = MODEL.training_loss(*args)
    return 1e22 * objective, rest

  config = OptimizerConfig(clip_norm=clip_norm, nonfinite="skip")
  optimizer = make_optimizer(config, 20)
  model = MODEL._replace(training_loss=training_loss)
  state = init_state(model, optimizer, model.init(key), B, averaged=True)
  before = jax.tree.map(np.asarray, state)  # kept: the step donates it
  train_step = make_train_step(model, optimizer, ema_decay=0.5)
  after, metrics = train_step(state, *EPOCH.batch(0))
  assert jnp.isfinite(metrics.loss) and jnp.isinf(metrics.grad_norm)
  assert after.opt_state.total_notfinite == after.step == 1
  for name in ("params", "average", "carry"):
    assert worst(getattr(after, name), getattr(before, name)) == 0
  inner = after.opt_state.inner_state, before.opt_state.inner_state
  assert worst(*inner) == 0


def test_the_average_is_that_of_the_weights_after_each_update(key):
  optimizer = make_optimizer(OptimizerConfig(), 20)
  state = init_state(MODEL, optimizer, MODEL.init(key), B, averaged=True)
  train_step = make_train_step(MODEL, optimizer, ema_decay=0.5)
  expected = jax.tree.map(np.asarray, MODEL.init(key))
  for step, (state, _) in enumerate(steps(train_step, state, 12)):  # noqa: B020
    rate = 1 - min(0.5, (1 + step) / (10 + step))
    expected = jax.tree.map(
      lambda a, p: (1 - rate) * a + rate * np.asarray(p),  # noqa: B023
      expected,
      state.params,
    )
  assert worst(eval_params(state), expected) < 1e-6
  assert worst(eval_params(state), state.params) > 1e-3
  plain = init_state(MODEL, optimizer, MODEL.init(key), B)
  assert eval_params(plain) is plain.params


def test_the_average_of_weights_that_do_not_change_is_exact():
  with jax.enable_x64(False), jax.numpy_dtype_promotion("strict"):
    params = jnp.array([0.3, 1e-8, 7.0])
    start = start_average(init_average(params))

    def update(step, average, decay=0.0):
      return update_average(average, params, step, jnp.array(True), decay)

    average = jax.lax.fori_loop(0, 999, update, start)
    assert average.num_averaged == 1000
    assert (average.params == params).all()
    # Before the start, the average is the weights, whatever it was before.
    other = init_average(jnp.full_like(params, 5.0))
    assert (update(0, other).params == params).all()


@pytest.mark.parametrize("decay, step", [(1 - 1e-7, 2**30), (1 - 1e-8, 10**7)])
def test_the_share_of_new_weights_in_the_moving_average_keeps_its_digits(
  decay, step
):
  with jax.enable_x64(False):
    average, new = init_average(jnp.zeros(1)), jnp.ones(1)
    finite = jnp.array(True)
    average = update_average(average, new, jnp.int32(step), finite, decay)
  share = max(1 - decay, 9 / (10 + step))
  np.testing.assert_allclose(average.params, share, rtol=1e-6)


def test_the_mean_of_nt_asgd_is_that_of_the_weights_since_its_start(key):
  optimizer = make_optimizer(
    OptimizerConfig(warmup_steps=0, nonfinite="skip"), 100
  )
  state = init_state(MODEL, optimizer, MODEL.init(key), B, averaged=True)
  train_step = make_train_step(MODEL, optimizer)
  for state, _ in steps(train_step, state, 4):  # noqa: B020
    assert worst(eval_params(state), state.params) == 0
  since = [jax.tree.map(np.asarray, state.params)]
  state = state._replace(average=start_average(state.average))
  for state, _ in steps(train_step, state, 5):  # noqa: B020
    since.append(jax.tree.map(np.asarray, state.params))
  assert int(state.average.num_averaged) == 6  # the start and 5 steps
  expected = jax.tree.map(lambda *p: np.mean(p, 0), *since)
  assert worst(eval_params(state), expected) < 1e-6
  # A step that is skipped does not count.
  nans = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
  state, _ = train_step(state._replace(carry=nans), *EPOCH.batch(1))
  assert int(state.average.num_averaged) == 6
  assert worst(eval_params(state), expected) < 1e-6
  assert worst(eval_params(state), state.params) > 1e-3


@pytest.mark.parametrize("ema_decay", [0.0, 0.999])
def test_an_average_in_float64_is_not_rounded_to_float32(ema_decay):
  average = init_average({"w": jnp.zeros((), jnp.float64)})
  if not ema_decay:
    average = start_average(average)
  expected = 0.0
  for step, w in enumerate([0.3, -1.7, 2.9]):
    rate = 1 - (1 + step) / (10 + step) if ema_decay else 1 / (step + 2)
    expected += rate * (w - expected)
    arguments = {"w": jnp.array(w)}, jnp.int32(step), jnp.array(True)
    average = update_average(average, *arguments, ema_decay)
  assert abs(average.params["w"] - expected) < 1e-14


def test_each_member_of_an_ensemble_has_a_mean_of_its_own():
  average = start_average(jax.vmap(init_average)({"w": jnp.array([1.0, 5.0])}))
  after, finite = {"w": jnp.array([4.0, 8.0])}, jnp.array([True, False])
  update = jax.vmap(update_average, in_axes=(0, 0, None, 0, None))
  mean, num_averaged = update(average, after, jnp.array(3), finite, 0.0)
  assert mean["w"].tolist() == [2.5, 5.0]
  assert num_averaged.tolist() == [2, 1]


@pytest.mark.parametrize("ema_decay", [0.5, 0.0])
def test_an_average_survives_weights_that_are_nan(ema_decay, key):
  average = start_average(init_average(MODEL.init(key)))
  nans = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), average.params)
  step, finite = jnp.array(3), jnp.array(False)
  after = update_average(average, nans, step, finite, ema_decay)
  assert worst(after, average) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_the_average_of_bfloat16_weights_is_float32_from_the_start(
  ema_decay, key
):
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.bfloat16)
  model = language_model(config, V)
  optimizer = make_optimizer(OptimizerConfig(), 20)
  first = init_state(model, optimizer, model.init(key), B, averaged=True)
  dtypes = jax.tree.map(jnp.result_type, first.average)
  train_step = make_train_step(model, optimizer, ema_decay=ema_decay)
  state, _ = next(steps(train_step, first, 1))
  assert jax.tree.map(jnp.result_type, state.average) == dtypes
  averages = jax.tree.leaves(state.average.params)
  assert {leaf.dtype for leaf in averages} == {jnp.dtype("float32")}
  weights = jax.tree.leaves(eval_params(state))
  assert {leaf.dtype for leaf in weights} == {jnp.dtype("bfloat16")}


def test_a_loss_is_nonmonotonic_if_worse_than_the_best_more_than_n_before():
  losses = [5.0, 4.0, 3.0, 3.5, 2.9, 3.1, 3.2]
  found = [is_nonmonotonic(losses[: n + 1], 2) for n in range(len(losses))]
  # 3.1 is above 3.0, which was measured three losses before it. At 3.5, only
  # 5.0 was measured early enough to count.
  assert found == [False] * 5 + [True, True]
  assert is_nonmonotonic([float("nan"), 2.0, 1.0, 3.0], 1)
  assert not is_nonmonotonic([1.0, 2.0], 1)
  assert not is_nonmonotonic([1.0, 2.0, 1.0], 1)  # no worse than the best
  assert is_nonmonotonic([1.0, 3.0, 2.0], 1)
  for patience in (0, -1):
    message = f"^patience must be an integer ≥ 1, got {patience}$"
    with pytest.raises(ValueError, match=message):
      is_nonmonotonic([1.0, 2.0], patience)


def test_the_patience_may_be_an_unsigned_integer():
  for patience in (2, np.uint8(2)):  # -np.uint8(2) would be 254, not -2
    assert not is_nonmonotonic([5.0, 4.0, 3.0, 3.5], patience)
