from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax.language import LanguageParams
from lstm_jax.training import OptimizerConfig, make_optimizer
from lstm_jax.training.norms import part_norms
from lstm_jax.training.optimizer import Rule, learning_rate
from tests.draws import worst


def test_the_learning_rate_rises_falls_and_ends_at_a_hundredth():
  config = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
  rate = learning_rate(config, 50)
  found = np.array([float(rate(step)) for step in range(51)])
  assert np.allclose(found[:5], [0.4, 0.8, 1.2, 1.6, 2.0], 1e-12, 0)
  cosine = np.cos(np.pi * np.arange(47) / 46)
  expected = 0.02 + 1.98 * (1 + cosine) / 2
  assert np.allclose(found[4:], expected, 1e-12, 0)
  assert abs(found[-1] - 0.02) < 1e-14


def test_a_constant_learning_rate_stays_at_its_peak():
  config = OptimizerConfig(
    learning_rate=2.0, warmup_steps=4, schedule="constant"
  )
  rate = learning_rate(config, 50)
  found = [float(rate(step)) for step in (0, 3, 4, 49)]
  assert np.allclose(found, [0.4, 1.6, 2, 2], 1e-12, 0)
  assert found[2:] == [2, 2]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_last_of_few_steps_has_the_peak_of_the_learning_rate(schedule):
  config = OptimizerConfig(
    learning_rate=2.0, warmup_steps=100, schedule=schedule
  )
  for num_steps in (1, 4):
    rate = learning_rate(config, num_steps)
    found = [float(rate(step)) for step in range(num_steps)]
    expected = 2 * np.arange(1, num_steps + 1) / num_steps
    assert np.allclose(found, expected, 1e-12, 0)


def test_gradients_are_clipped_by_element_and_by_norm():
  gradient = {"a": jnp.array([30.0, -40.0, 0.5])}
  params = {"a": jnp.zeros(3)}
  for options, expected in (
    ({"clip_value": 5.0, "clip_norm": 0.0}, [5, -5, 0.5]),
    ({"clip_norm": 1.0}, np.array([30, -40, 0.5]) / np.sqrt(2500.25)),
    # The elements are clipped first.
    ({"clip_value": 5.0, "clip_norm": 1.0}, [5, -5, 0.5] / np.sqrt(50.25)),
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
    assert np.allclose(-updates["a"], expected, rtol=1e-12, atol=0)


def in_numpy(optimizer, gradients, rate):
  """Return weights, 1 at first, after updates by the optimizer's equations."""
  p, first, second = np.ones_like(gradients[0]), 0.0, 0.0
  for t, g in enumerate(gradients, 1):
    if optimizer == "sgd":
      first = g + 0.9 * first
      p = p - rate * first
    elif optimizer == "rmsprop":
      second = 0.95 * second + 0.05 * g**2
      p = p - rate * g / np.sqrt(second + 1e-8)
    elif optimizer == "adagrad":
      second = second + g**2
      p = p - rate * g / np.sqrt(second + 1e-8)
    else:  # with the weight decay of the test, 0.2
      assert optimizer == "adamw", f"the equations of {optimizer} are missing"
      first = 0.9 * first + 0.1 * g
      second = 0.999 * second + 0.001 * g**2
      scaled = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
      p = p - rate * (scaled + 0.2 * p)
  return p


@pytest.mark.parametrize("optimizer", get_args(Rule))
def test_three_updates_are_those_of_the_equations(optimizer):
  gradients = np.random.default_rng(0).standard_normal((3, 2, 3))
  config = OptimizerConfig(
    optimizer=optimizer,
    learning_rate=0.1,
    weight_decay=0.2,
    schedule="constant",
    warmup_steps=0,
    clip_norm=0.0,
  )
  rule = make_optimizer(config, 10)
  params = {"w": jnp.ones((2, 3))}
  state = rule.init(params)
  for gradient in gradients:
    updates, state = rule.update({"w": jnp.asarray(gradient)}, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  expected = in_numpy(optimizer, gradients, 0.1)
  assert np.abs(params["w"] - expected).max() < 1e-12


def test_ten_steps_in_a_row_that_are_not_finite_are_skipped_and_no_more():
  optimizer = make_optimizer(OptimizerConfig(nonfinite="skip"), 100)
  params = {"w": jnp.ones((2, 2))}
  state = optimizer.init(params)
  nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  for _ in range(10):
    updates, state = optimizer.update(nan, state, params)
    assert not updates["w"].any()
  updates, _ = optimizer.update(nan, state, params)
  assert jnp.isnan(updates["w"]).all()


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", get_args(Rule))
def test_a_gradient_whose_norm_overflows_is_skipped(optimizer, clip_norm):
  config = OptimizerConfig(
    optimizer=optimizer, clip_norm=clip_norm, nonfinite="skip"
  )
  rule = make_optimizer(config, 100)
  params = {"w": jnp.ones((2, 2), jnp.float32)}
  large = jax.tree.map(lambda p: 3e19 * p, params)
  before = rule.init(params)
  updates, after = rule.update(large, before, params)
  assert not updates["w"].any()
  assert int(after.total_notfinite) == 1
  assert worst(after.inner_state, before.inner_state) == 0
  updates, _ = rule.update(params, after, params)
  assert updates["w"].all()


def test_a_rule_that_skips_takes_the_extra_arguments_of_optax():
  rule = make_optimizer(OptimizerConfig(nonfinite="skip"), 9)
  params = {"w": jnp.ones((2, 2))}
  found, expected = (
    rule.update(params, rule.init(params), params, **extra)[0]
    for extra in ({"value": 1.0}, {})
  )
  assert worst(found, expected) == 0


def test_the_norm_that_clips_a_float16_gradient_does_not_overflow():
  config = OptimizerConfig(
    optimizer="sgd", learning_rate=1.0, schedule="constant", warmup_steps=0
  )
  rule = make_optimizer(config, 9)
  large = jnp.full((4, 4), 200, jnp.float16)  # a sum of squares of 6.4e5
  updates, _ = rule.update(large, rule.init(large), large)
  assert (updates == -0.25).all()  # 200 / 800: the default clip_norm is 1


def test_a_norm_that_overflows_in_float16_alone_is_not_skipped():
  config = OptimizerConfig(optimizer="sgd", clip_norm=0, nonfinite="skip")
  rule = make_optimizer(config, 100)
  large = jnp.full((2, 5), 200, jnp.float16)  # a sum of squares of 4e5
  updates, state = rule.update(large, rule.init(large), large)
  assert updates.all() and int(state.total_notfinite) == 0


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
  assert np.allclose(after["w"], 0.95, 1e-12, 0)
  assert (after["b"] == 1).all()


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


@pytest.mark.parametrize("num_steps", [0, 1.5, True, "9"])
def test_a_number_of_steps_that_is_no_positive_integer_is_refused(num_steps):
  expected = f"^num_steps must be an integer ≥ 1, got {num_steps!r}$"
  with pytest.raises(ValueError, match=expected):
    make_optimizer(OptimizerConfig(), num_steps)


@pytest.mark.everyday(2)
@pytest.mark.parametrize("optimizer", get_args(Rule))
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_updates_of_16_bits_are_those_of_float32_rounded(optimizer, dtype):
  config = OptimizerConfig(optimizer=optimizer, warmup_steps=0)
  rule = make_optimizer(config, 9)
  params = jnp.array([[1.1, -2.3], [0.7, 1.9], [3.1, 0.3]], dtype)
  # Neither a square that is 0 in float16, that of 1e-5, nor a gradient of 0, as
  # of an embedding that no token used, may lead to a division by 0.
  gradient = jnp.array([[0, 0], [1e-5, 1e-3], [0.1, 0.2]], dtype)

  def update(dtype):
    leaves = gradient.astype(dtype), params.astype(dtype)
    return rule.update(leaves[0], rule.init(leaves[1]), leaves[1])[0]

  found = update(dtype)
  assert found.dtype == dtype
  assert (found == update(jnp.float32).astype(dtype)).all()
  before = rule.init(params)
  _, after = rule.update(gradient, before, params)
  dtypes = [jax.tree.map(jnp.result_type, state) for state in (before, after)]
  assert dtypes[0] == dtypes[1]


def test_the_norm_of_a_float16_gradient_is_a_float32():
  large = jnp.full(10_000, 100.0, jnp.float16)  # a sum of squares of 1e8
  nothing = jnp.zeros(1, jnp.float16)
  tree = LanguageParams(large, (), None, nothing)
  norm = part_norms(tree)["embedding"]
  assert norm == 1e4 and norm.dtype == jnp.float32


@pytest.mark.parametrize(("readout", "norm"), [(3 * np.eye(1), 5), (None, 4)])
def test_the_norm_of_the_readout_is_that_of_its_weights_and_its_bias(
  readout, norm
):
  one, two = jnp.ones(1), jnp.full((2, 2), 1.0)
  tree = LanguageParams(one, (two, (two, one)), readout, jnp.full(1, 4.0))
  expected = {"embedding": 1, "layer1": 2, "layer2": 5**0.5, "readout": norm}
  assert part_norms(tree) == pytest.approx(expected, rel=1e-15)
