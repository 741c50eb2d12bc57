"""Programs of language models, such as those that evaluate and sample.

A model can be a static argument of one `jax.jit` for all models. But JAX would
keep the programs of thousands of models, and these models, alive, also those
that `language_model` has long dropped: a search over many models in one process
would fill its memory.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax

from lstm_jax.cells.caching import one_at_a_time
from lstm_jax.language.model import LanguageModel


def per_model(f: Callable, num_static: int = 0) -> Callable[..., Any]:
  """Return f, compiled for the 64 models that were used last.

  Args:
    f: a function of a model, static arguments and trees of arrays.
    num_static: how many arguments after the model are static: hashable values.

  Returns:
    (model) -> f of this model as a compiled function of its other arguments.
  """

  @one_at_a_time  # else two threads could get two functions
  @lru_cache(maxsize=64)
  def of(model: LanguageModel) -> Callable:
    return jax.jit(partial(f, model), static_argnums=range(num_static))

  return of
