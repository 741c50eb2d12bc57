"""The delayed recall task, training on it, and biases that fit its delay."""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis import recall
from experiments.analysis.recall import GATE_BIASES, with_chrono_biases
from experiments.trainer.config import CELLS
from lstm_jax import lstm
from lstm_jax.language import ModelConfig, language_model
from tests.compiling import count_programs
from tests.draws import worst


@pytest.mark.parametrize("delay", [1, 7])
def test_a_sequence_is_a_symbol_blanks_and_a_cue(delay, key):
  tokens, symbols = recall.draw(key, delay, 400)
  assert tokens.shape == (delay + 2, 400)
  assert (tokens[0] == symbols).all()
  assert (tokens[1:-1] == recall.BLANK).all()
  assert (tokens[-1] == recall.CUE).all()
  assert set(np.asarray(symbols)) == set(range(recall.SYMBOLS))
  assert tokens.max() < recall.VOCABULARY


def learn(key, num_steps, learning_rates):
  """Train two seeds on a delay of 2."""
  config = ModelConfig(lstm, embedding_size=8, hidden_size=12)
  model = language_model(config, recall.VOCABULARY)
  return recall.learn(
    model,
    jax.random.split(key, 2),
    delay=2,
    num_steps=num_steps,
    learning_rates=learning_rates,
  )


@pytest.mark.exhaustive
def test_a_short_delay_is_learned_and_the_best_rate_returned(key):
  result = learn(key, 100, learning_rates=(1e-9, 0.02))
  assert result.learning_rate == 0.02
  assert min(result.accuracy) > 0.9 and max(result.nats) < 1
  assert len(result.accuracy) == len(result.nats) == 2


def test_the_best_rate_loses_the_fewest_seeds_and_has_the_lowest_loss():
  losses = [[np.nan, np.inf], [np.nan, 9.0], [2.0, np.inf], [7.0, 8.0]]
  ranks = [recall.rank(np.array(each)) for each in losses]
  assert ranks == [(2, np.inf), (1, 9.0), (1, 2.0), (0, 7.5)]
  assert min(ranks) == ranks[3] and min(ranks[:3]) == ranks[2]


@pytest.mark.exhaustive
def test_a_seed_that_diverges_has_no_loss(key):
  assert learn(key, 9, learning_rates=(3e38,)).nats == [None, None]


@pytest.mark.exhaustive
def test_other_biases_and_a_second_call_compile_no_training_steps(key):
  config = ModelConfig(lstm, embedding_size=3, hidden_size=4)
  model = language_model(config, recall.VOCABULARY)
  keys = jax.random.split(key, 2)
  options = {"delay": 1, "num_steps": 2, "learning_rates": (1e-3,)}
  learn = partial(recall.learn, model, keys, **options)
  programs = []
  for chrono in (None, "lstm", None):
    with count_programs() as compiled:
      learn(chrono=chrono)
    programs.append(len(compiled))
  first, biases, again = programs
  assert first > biases == 1 and again == 0  # one program, of the biases
  # Each training step has sequences of its own.
  train_all, _ = recall._programs(model, 1, 2, None)
  members = recall._init_program(model, 2)(keys)
  two, one_twice = (
    train_all((members, keys), (jnp.array(steps), jnp.asarray(1e-3)))[0]
    for steps in ([0, 1], [0, 0])
  )
  assert (two.bias != one_twice.bias).any()
  # Each seed draws its biases by a key of its own. A sequence with a delay of 1
  # has 3 time steps.
  found = recall._with_chrono(members[0], keys, "lstm", 3).layers[0].b
  for number, (seed, b) in enumerate(zip(keys, found, strict=True)):
    params = jax.tree.map(itemgetter(number), members[0])
    expected = with_chrono_biases(params, "lstm", jax.random.split(seed)[1], 3)
    assert worst(b, expected.layers[0].b) < 1e-6  # float32


def test_each_rate_trains_the_initial_weights_for_all_steps(key, monkeypatch):
  """Here the weights begin at 1 and grow by rate × steps; so does the loss.

  Both rates have the same keys, and the sequences of the test have others than
  those of the training.
  """
  taken, used = [], {"train": set(), "test": set()}

  def train_all(own, shared):
    (((weights, _), keys), (steps, rate)) = own, shared
    used["train"] |= {str(jax.random.key_data(k)) for k in keys}
    taken.append((float(rate), steps.tolist()))
    return weights + float(rate) * len(steps), None

  def test_all(own, shared):
    ((weights, keys), ()) = own, shared
    used["test"] |= {str(jax.random.key_data(k)) for k in keys}
    return np.array([0.5, 1.0]), np.array([weights, weights + 2])

  stand_ins = train_all, test_all
  monkeypatch.setattr(recall, "_programs", lambda *args: stand_ins)
  monkeypatch.setattr(
    recall, "_init_program", lambda *args: lambda keys: (1.0, None)
  )
  result = recall.learn(None, jax.random.split(key), 3, 120, (0.5, 0.25))
  assert taken == [
    (rate, [*range(first, last)])
    for rate in (0.5, 0.25)
    for first, last in ((0, 50), (50, 100), (100, 120))  # 50: STEPS_PER_CALL
  ]
  assert result == recall.Recall(0.25, [0.5, 1.0], [31.0, 33.0])
  assert len(used["train"]) == len(used["test"]) == 2  # of two seeds
  assert not used["train"] & used["test"]


def test_the_optimizer_lets_no_weight_decay():
  optimizer = recall._optimizer(3)
  weights, zero = jnp.ones((2, 2)), jnp.zeros((2, 2))
  updates, _ = optimizer.update(zero, optimizer.init(weights), weights)
  assert not updates.any()


def test_chrono_biases_fit_the_steps_of_a_whole_sequence(key, monkeypatch):
  trained = []

  def train_all(own, shared):
    ((weights, _), _) = own
    trained.append(weights)
    return own[0]

  stand_ins = {
    "_init_program": lambda *args: lambda keys: ("initial", None),
    "_with_chrono": lambda params, keys, *args: (params, *args),
    "_programs": lambda *args: (train_all, lambda *args: np.zeros((2, 2))),
  }
  for name, stand_in in stand_ins.items():
    monkeypatch.setattr(recall, name, stand_in)
  for chrono in ("lstm", None):
    recall.learn(None, jax.random.split(key), 7, 3, (0.1,), chrono)
  longest = len(recall.draw(key, 7, 1)[0])
  assert trained == [("initial", "lstm", longest), "initial"]


def test_longest_is_the_delay_before_the_first_accuracy_too_low():
  accuracies = {1: 1.0, 2: 0.95, 5: 0.5, 10: 0.99}
  assert recall.longest(accuracies) == 2
  assert recall.longest({1: 0.9, 2: 1.0}) == 0
  assert recall.longest({5: 0.91}) == 5


def initial_and_changed(cell, key, longest=50):
  """Return a language model's weights before and after `with_chrono_biases`.

  The model has one layer of 64 units. All weights but its biases are 0: to draw
  them would take the longest to compile.
  """
  config = ModelConfig(CELLS[cell], embedding_size=4, hidden_size=64)
  model = language_model(config, 5)

  @jax.jit
  def biases(key):
    params = model.init(key)
    changed = with_chrono_biases(params, cell, key, longest)
    return params.layers[0].b, changed.layers[0].b

  shapes = jax.eval_shape(model.init, key)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  (layer,) = zeros.layers
  return [zeros._replace(layers=(layer._replace(b=b),)) for b in biases(key)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", GATE_BIASES)
def test_a_unit_keeps_its_memory_for_about_its_own_time(cell, key):
  """A step without input keeps a share of u / (u + 1) of the memory.

  The times u are uniform between 1 and T − 1, with T = 50.
  """
  _, params = initial_and_changed(cell, key)
  (layer,) = params.layers
  zero = CELLS[cell].initial_state(layer, (1,))
  if cell == "slstm":  # the normaliser's fixed point, n = f n + i
    i, f = jnp.exp(layer.b[:64]), jax.nn.sigmoid(layer.b[64:128])
    zero = zero._replace(n=(i / (1 - f))[None])

  @jax.jit
  def memory(state):
    after = CELLS[cell].step(layer, state, jnp.zeros((1, 4), jnp.float32))
    if cell == "slstm":
      return after.c / after.n
    return getattr(after, "c", after.h)

  name = "c" if hasattr(zero, "c") else "h"
  whole = getattr(zero, "n", jnp.ones_like(getattr(zero, name)))
  kept = memory(zero._replace(**{name: whole})) - memory(zero)
  times = np.asarray(kept / (1 - kept))
  assert 0.99 < times.min() < 4 and 45 < times.max() < 49.01
  assert abs(times.mean() - 25) < 6


@pytest.mark.exhaustive
def test_the_input_gate_of_an_lstm_gets_the_opposite_bias(key):
  params, _ = initial_and_changed("lstm", key)
  (layer,) = params.layers
  given = params._replace(layers=(layer._replace(b=layer.b + 0.5),))  # not 0
  before, after = (
    params.layers[0].b.reshape(4, -1)
    for params in (given, with_chrono_biases(given, "lstm", key, 50))
  )
  np.testing.assert_array_equal(after[0], -after[1])
  np.testing.assert_array_equal(after[2:], before[2:])
  assert (after[1] != before[1]).all()


def test_each_layer_draws_its_own_times(key):
  params, _ = initial_and_changed("lstm", key)
  two = params._replace(layers=params.layers * 2)
  first, second = with_chrono_biases(two, "lstm", key, 50).layers
  # The biases of i and f; each gate has 64 units.
  assert (first.b[:128] != second.b[:128]).all()


def test_a_cell_without_a_gate_that_keeps_its_memory_is_refused(key):
  message = r"a gate that keeps its memory \(lstm, .*, gru, .*\), got rnn$"
  params, _ = initial_and_changed("lstm", key)
  with pytest.raises(ValueError, match=message):
    with_chrono_biases(params, "rnn", key, 50)
  with pytest.raises(ValueError, match="longest must be at least 2, got 1"):
    with_chrono_biases(params, "lstm", key, 1)
