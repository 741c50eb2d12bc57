"""Noise, weights and samples: which random keys must differ."""

import jax

from experiments.comparison.training import sample_keys
from experiments.trainer.setup import make_keys, make_setup
from tests.draws import worst

WEIGHT_KEYS = 4  # that `init_params` makes of its key; some are split again


def data(*keys):
  """Return the set of the data of some keys."""
  return {tuple(jax.random.key_data(key).tolist()) for key in keys}


def children(key, count):
  """Return the keys that `split` makes of a key: `fold_in` makes them too."""
  keys = [jax.random.fold_in(key, k) for k in range(count)]
  assert data(*keys) == data(*jax.random.split(key, count))
  return keys


def test_noise_is_not_drawn_by_the_keys_of_weights_or_samples():
  """Nor by keys made of them: by `split` or, in `sample`, by `fold_in`."""
  for seed in (0, 1, 7):
    init, samples, noise = make_keys(seed)
    drawn = data(*children(init, 64), *children(samples, 64))
    firsts = children(init, WEIGHT_KEYS)
    layers = data(*(k for c in firsts for k in children(c, 64)))
    steps = data(noise, *children(noise, 64))
    assert len(steps) == 65
    assert not steps & (drawn | layers | data(init, samples))


def test_initial_weights_are_drawn_by_the_key_of_weights(config):
  setup = make_setup(config)
  expected = setup.model.init(setup.keys.init)
  assert worst(setup.make_state().params, expected) == 0


def test_samples_of_a_comparison_are_not_drawn_by_the_keys_of_weights():
  keys = jax.random.split(jax.random.key(3), 2)
  for key, samples in zip(keys, sample_keys(keys), strict=True):
    firsts = children(key, WEIGHT_KEYS)
    weights = data(*firsts)
    layers = data(*(k for c in firsts for k in children(c, 64)))
    drawn = data(samples, *children(samples, 64))
    assert len(drawn) == 65 and not drawn & (weights | layers)
