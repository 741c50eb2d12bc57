"""Weights in 8 bits: what they stand for, and what they may cost."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.pages import quantized
from experiments.pages.packed_model import describe_cost
from experiments.pages.quantized import (
  Cost,
  Quantized,
  check_cost,
  dequantize,
  dequantize_params,
  measure_cost,
  quantize,
  quantize_params,
)
from experiments.trainer.trained import load
from lstm_jax import layernorm_lstm
from lstm_jax.language import ModelConfig, language_model


def test_a_weight_is_rounded_by_half_a_level_of_its_output():
  w = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
  w[1] *= 1e-4
  w[2] = 0
  matrix = quantize(w)
  assert matrix.levels.dtype == np.int8 and matrix.scales.shape == (5,)
  assert np.abs(matrix.levels).max(axis=1).tolist() == [127, 127, 0, 127, 127]
  error = np.abs(dequantize(matrix) - w)
  assert (error <= 0.5001 * matrix.scales[:, None]).all()
  assert (dequantize(matrix)[2] == 0).all() and error.max() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_params_are_the_model_with_rounded_matrices(tied, key):
  config = ModelConfig(
    cell=layernorm_lstm, embedding_size=6, hidden_size=6, num_layers=2
  )
  config = dataclasses.replace(config, tied=tied)
  params = language_model(config, 7).init(key)
  packed = quantize_params(params)
  assert packed.layers[1].w_x.levels.shape == (24, 6)  # by outputs
  assert (
    isinstance(packed.embedding, Quantized) and (packed.readout is None) == tied
  )
  found = dequantize_params(packed)
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(params), strict=True
  ):
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max()
    assert error <= np.abs(theirs).max() / 254 + 1e-7
    assert (error == 0) == (theirs.ndim == 1)


def test_a_cost_that_is_too_large_or_nan_is_refused():
  check_cost(Cost(1.0, 1.04, 90), "word")
  for after in (1.06, float("nan")):
    with pytest.raises(
      ValueError, match=r"may cost at most 0\.05 nats per word"
    ):
      check_cost(Cost(1.0, after, 90), "word")


def test_a_cost_is_said_with_its_sign():
  tokenizer = SimpleNamespace(unit="word")
  for after, said in ((1.375, "−0.1250"), (1.625, "+0.1250")):
    assert describe_cost(Cost(1.5, after, 1234), tokenizer) == (
      f"8-bit weights cost {said} nats per word (1.5000 before, {after}0 "
      "after), on 1,234 words"
    )


@pytest.mark.exhaustive
def test_the_cost_is_the_difference_of_two_losses_and_limited(
  explored_run, monkeypatch
):
  trained = load(explored_run)
  tokens = np.arange(90, dtype=np.int32) % trained.tokenizer.size
  params = dequantize_params(quantize_params(trained.params))
  cost = measure_cost(trained, params, tokens)
  assert cost.num_tokens == 90 and 0 < abs(cost.after - cost.before) < 0.01
  same = measure_cost(trained, trained.params, tokens)
  assert same.before == cost.before and abs(same.after - same.before) < 1e-6
  # The cost of this small model is below any limit above 0.01.
  monkeypatch.setattr(quantized, "MAX_COST", -1.0)
  with pytest.raises(ValueError, match=r"may cost at most -1\.0 nats per char"):
    check_cost(cost, "character")
