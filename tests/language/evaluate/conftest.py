"""Weights of the model that is evaluated, and the scale of their gradients."""

import jax
import pytest

from lstm_jax.language import make_batches
from lstm_jax.language.dynamic_eval import gradient_scale
from tests.draws import normal_like
from tests.language.evaluate.evaluated import MODEL, TOKENS


@pytest.fixture
def params(key):
  return normal_like(key, jax.eval_shape(MODEL.init, key))


@pytest.fixture
def scale(params):
  return gradient_scale(MODEL, params, make_batches(TOKENS, 2, 5))
