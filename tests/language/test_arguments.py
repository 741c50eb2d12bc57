"""The weights that a language model takes."""

import re

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import lstm
from lstm_jax.language import ModelConfig, Regularizers, language_model

V, E, H = 9, 4, 5
CONFIG = ModelConfig(embedding_size=E, hidden_size=H)
TOKENS = jnp.zeros((3, 2), int)


def refused(params, message, config=CONFIG):
  """Check that each function that takes weights refuses these."""
  model = language_model(config, V)
  dropout = Regularizers(token_dropout=0.5)
  regularized = language_model(config, V, regularizers=dropout)
  message = f"^{re.escape(message)}$"
  for f, arguments in (
    (model.apply, ()),
    (model.loss, (TOKENS,)),
    (model.training_loss, (TOKENS, None)),
    (regularized.training_loss, (TOKENS, jax.random.key(0))),
  ):
    with pytest.raises(ValueError, match=message):
      f(params, None, TOKENS, *arguments)


def test_weights_of_another_vocabulary_or_embedding_are_refused(key):
  others = language_model(CONFIG, 12).init(key)
  refused(others, "params.embedding must be [9, 4], got (12, 4)")
  params = language_model(CONFIG, V).init(key)
  for name, expected in (("readout", "[n, 9]"), ("bias", "[9]")):
    other = getattr(others, name)
    message = f"params.{name} must be {expected}, got {other.shape}"
    refused(params._replace(**{name: other}), message)
  wide = params._replace(embedding=jnp.zeros((V, 2 * E)))
  refused(wide, "params.embedding must be [9, 4], got (9, 8)")


def test_a_bias_of_another_shape_is_refused(key):
  """JAX would add one of a single element to all logits."""
  params = language_model(CONFIG, V).init(key)
  for shape in (1,), (), (1, V), (V, 1):
    message = f"params.bias must be [9], got {shape}"
    refused(params._replace(bias=jnp.zeros(shape)), message)


def test_weights_that_are_no_arrays_are_named(key):
  params = language_model(CONFIG, V).init(key)
  layer = lstm.init(key, E, H)
  refused(None, "params must be LanguageParams, got NoneType")
  refused(layer, "params must be LanguageParams, got LSTMParams")
  for name, expected in (
    ("embedding", "[9, 4]"),
    ("readout", "[n, 9]"),  # None is that of a model whose readout is tied
    ("bias", "[9]"),
  ):
    message = f"params.{name} must be {expected}, got NoneType"
    refused(params._replace(**{name: None}), message)


def test_layers_are_named_if_there_are_none_or_they_do_not_fit(key):
  params = language_model(CONFIG, V).init(key)
  message = "params.layers must have at least one layer, got none"
  refused(params._replace(layers=()), message)
  message = "params.layers must be a list or tuple with one element per layer"
  refused(params._replace(layers=None), f"{message}, got NoneType")
  refused(
    params._replace(layers=params.layers[0]), f"{message}, got LSTMParams"
  )
  model, narrow = language_model(CONFIG, V), lstm.init(key, E - 1, H)
  tokens = jnp.zeros((V, 1), int)
  with pytest.raises(ValueError, match=r"layers\[0\]\.w_x must be \[4, n"):
    model.loss(params._replace(layers=(None,)), None, tokens, tokens)
  # For 9 tokens, a table W_e W_x has the inputs; for 1, rows of W_e.
  for tokens in (jnp.zeros((V, 1), int), jnp.zeros((1, 1), int)):
    with pytest.raises(ValueError, match=r"w_x|xs must be"):
      model.loss(params._replace(layers=(narrow,)), None, tokens, tokens)


def test_a_readout_that_is_tied_has_no_weights_of_its_own(key):
  tied = ModelConfig(embedding_size=H, hidden_size=H, tied=True)
  params = language_model(tied, V).init(key)
  own = params._replace(readout=jnp.zeros((H, V)))
  message = "params.readout must be None, as it is tied, got ArrayImpl"
  refused(own, message, tied)
