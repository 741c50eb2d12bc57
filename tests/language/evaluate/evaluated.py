"""A small model and a text, which the tests evaluate."""

import jax.numpy as jnp
import numpy as np

from lstm_jax.language import ModelConfig, language_model
from lstm_jax.language.dynamic_eval import DynamicEvalConfig

V, N = 7, 53
MODEL = language_model(
  ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.float64), V
)
TOKENS = np.random.default_rng(0).integers(0, V, N).astype(np.int32)
CONFIG = DynamicEvalConfig(rate=0.05, decay=0.02, segment=4)
