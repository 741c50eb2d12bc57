"""With `compute_dtype`, a model rounds the operands of all its products."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit
from lstm_jax.language import ModelConfig, language_model
from tests.draws import B, T, normal_like, worst

V = 11


def rounded(x):
  """Return a matrix rounded to bfloat16, in its own dtype; vectors as given."""
  return x.astype(jnp.bfloat16).astype(x.dtype) if x.ndim > 1 else x


# With groups, the readout's gradient is first summed in parts of the batch.
@pytest.mark.parametrize(
  ("adjoint", "groups"), [(Explicit(), 1), (Explicit(), B), (Autodiff(), 1)]
)
def test_weights_and_weights_rounded_to_the_compute_dtype_are_the_same_model(
  adjoint, groups, key
):
  config = ModelConfig(embedding_size=4, hidden_size=6)
  tokens = jax.random.randint(key, (T + 1, B), 0, V)
  batch = tokens[:-1], tokens[1:]

  def change(dtype):
    """Return how much the logits and the loss change by the rounding."""
    model = language_model(
      replace(config, compute_dtype=dtype), V, adjoint=adjoint, groups=groups
    )
    params = normal_like(key, jax.eval_shape(model.init, key))
    logits, losses = (
      [f(p, None, *x) for p in (params, jax.tree.map(rounded, params))]
      for f, x in ((model.apply, batch[:1]), (model.loss, batch))
    )
    return worst(*logits), worst(*losses)

  assert change(jnp.bfloat16) == (0, 0)
  assert min(change(None)) > 1e-4
