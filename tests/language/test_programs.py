import gc
import weakref

import jax.numpy as jnp

from lstm_jax.language import programs


def test_a_model_is_freed_once_64_others_were_used():
  class Model:  # as small as a model can be
    pass

  @programs.per_model
  def twice(model, x):
    del model
    return 2 * x

  first = Model()
  assert twice(first) is twice(first)
  assert twice(first)(jnp.ones(3)).sum() == 6
  assert twice(first)._cache_size() == 1
  freed = weakref.ref(first)
  for _ in range(64):
    twice(Model())
  del first
  gc.collect()
  assert freed() is None
