"""A small language model of two layers, and random arguments for it."""

import jax
import jax.numpy as jnp

from lstm_jax import Explicit
from lstm_jax.language import ModelConfig, language_model
from tests.contract import TABLE
from tests.draws import B, H, T, normal_like

V, E = 11, 4


def make(name, key, adjoint=Explicit(), regularizers=None, **options):
  """Return (model, params, state, tokens, targets).

  Params, with the biases, and the state are standard normal. Tokens and targets
  are random, [T, B]; a target is the token one time step later. `name` is that
  of a cell, and `options` are further fields of `ModelConfig`.
  """
  config = ModelConfig(
    cell=TABLE[name].cell,
    embedding_size=E,
    hidden_size=H,
    num_layers=2,
    dtype=jnp.float64,
    **options,
  )
  model = language_model(config, V, regularizers=regularizers, adjoint=adjoint)
  start = jax.eval_shape(model.init, key), model.initial_state((B,))
  params, state = normal_like(key, start)
  tokens = jax.random.randint(key, (T + 1, B), 0, V)
  return model, params, state, tokens[:-1], tokens[1:]
