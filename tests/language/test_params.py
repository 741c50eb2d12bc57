"""The initial weights of a language model: their sizes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import min_gru, projected_lstm
from lstm_jax.language import ModelConfig, Regularizers, language_model

V = 11


def test_a_readout_starts_by_the_number_of_outputs_not_of_hidden_units(key):
  own, unit = (
    language_model(
      ModelConfig(projected_lstm, hidden_size=8, readout_std=std), V
    )
    .init(key)
    .readout
    for std in (None, 1.0)
  )
  assert own.shape == (4, V)  # the outputs are half of the hidden units
  assert (own == unit / 2).all()  # of standard deviations 1/√4 and 1


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("init_std", [None, 0.1])
def test_all_initial_weights_have_the_dtype_of_the_configuration(
  init_std, tied, key
):
  for dtype in (jnp.bfloat16, jnp.float64):
    config = ModelConfig(
      embedding_size=8, hidden_size=8, init_std=init_std, tied=tied, dtype=dtype
    )
    params = jax.eval_shape(language_model(config, V).init, key)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {dtype.dtype}


def test_weights_in_bfloat16_are_those_of_float32_rounded(key):
  """Drawn in bfloat16, they would be 128 numbers, with a mean below 0."""
  for init_std in (None, 0.1):
    wide, narrow = (
      language_model(
        ModelConfig(min_gru, 8, 8, 1, init_std, dtype=dtype), V
      ).init(key)
      for dtype in (jnp.float32, jnp.bfloat16)
    )
    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16), wide)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), narrow, rounded)
    assert all(jax.tree.leaves(same))


def test_float64_weights_of_numpy_need_no_x64(key, recwarn):
  config = ModelConfig(embedding_size=3, hidden_size=4)
  noise = Regularizers(weight_drop=0.2, token_dropout=0.2)
  model = language_model(config, V, regularizers=noise)
  with jax.enable_x64(False):
    params = jax.tree.map(lambda x: np.asarray(x, float), model.init(key))
    tokens = jnp.ones((2, 1), int)
    model.apply(params, None, tokens)
    model.loss(params, None, tokens, tokens)
    loss, _ = model.training_loss(params, None, tokens, tokens, key)
  assert not recwarn.list
  assert loss.dtype == jnp.float32
