"""Numbers and weights in a byte each, and the templates that hold them."""

import base64
import dataclasses
import gzip
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.pages import explore, report, writer
from experiments.pages.explore import pack_path
from experiments.pages.packed_model import (
  Cost,
  Quantized,
  check_cost,
  dequantize,
  dequantize_params,
  describe_cost,
  measure_cost,
  quantize,
  quantize_params,
)
from experiments.pages.packing import (
  Blobs,
  quantize_gate,
  quantize_norms,
  quantize_signed,
  script,
)
from experiments.trainer.trained import load
from lstm_jax import layernorm_lstm
from lstm_jax.language import ModelConfig, language_model


@pytest.mark.parametrize("page", [explore, report, writer])
def test_a_page_is_one_file_that_loads_nothing(page):
  blobs = Blobs()
  blobs.add(np.zeros(3))
  text = blobs.page(page.TEMPLATE, {"unit": "word"})
  parts = "Content-Security-Policy", "async function unpack(", "</head>"
  for part in (*parts, 'id="header"', 'id="blob0"'):
    assert text.count(part) == 1
  assert text.index("unpack(") < text.index("</head>") < text.index("blob0")
  assert not re.search(r"\bsrc=|@import|url\(|<!-- (head|data)", text)


def test_the_same_data_is_the_same_page_and_a_nan_is_refused():
  _, _, packed, _, _ = re.split("[<>]", script("blob0", b"data"))
  raw = base64.b64decode(packed)
  assert gzip.decompress(raw) == b"data" and raw[4:8] == bytes(4)  # no time
  with pytest.raises(ValueError, match="JSON"):
    Blobs().page(report.TEMPLATE, {"loss": float("nan")})


def test_zeros_and_constants_are_exact_and_norms_span_twelve_decades():
  """That others are rounded by half a level is tested on the page itself."""
  assert quantize_gate(np.array([[0.0, 1.0]])).tolist() == [[0, 255]]
  levels, largest = quantize_signed(np.array([[2.0, 0, -4e-6], [0, 0, 0]]))
  assert (levels[0, 0], levels[0, 1], largest.tolist()) == (255, 128, [2, 0])
  assert (levels[1] == 128).all()
  norms = np.array([[0, 1e-20, 1e-9], [1e-3, 1, 1e3]])
  levels, low, high = quantize_norms(norms)
  assert (low, high) == (-9, 3) and levels[1, 2] == 255
  assert levels[0].tolist() == [0, 1, 1]
  for constant, level in ((0, 0), (0.1, 1)):
    levels, low, high = quantize_norms(np.full((2, 3), constant))
    assert (levels == level).all() and high > low


def test_a_gradient_that_overflows_has_the_level_of_the_largest():
  norms = np.array([[1, np.inf], [1e-3, np.nan], [0, 1]], np.float32)
  taken = []
  header = pack_path("h", norms, SimpleNamespace(add=taken.append))
  assert np.allclose([header["low"], header["high"]], [-3, 0])
  ((a, b), (c, d), (e, f)), largest = taken[0].astype(int), 255
  assert a == b == d == f == largest > c > 0 == e


def test_a_weight_is_rounded_by_half_a_level_of_its_output():
  w = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
  w[1] *= 1e-4
  w[2] = 0
  matrix = quantize(w)
  assert matrix.levels.dtype == np.int8 and matrix.scales.shape == (5,)
  assert np.abs(matrix.levels).max(axis=1).tolist() == [127, 127, 0, 127, 127]
  error = np.abs(dequantize(matrix) - w)
  assert (error <= 0.5001 * matrix.scales[:, None]).all()


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_params_are_the_model_with_rounded_matrices(tied, key):
  config = ModelConfig(
    cell=layernorm_lstm, embedding_size=6, hidden_size=6, num_layers=2
  )
  config = dataclasses.replace(config, tied=tied)
  params = language_model(config, 7).init(key)
  packed = quantize_params(params)
  assert packed.layers[1].w_x.levels.shape == (24, 6)  # by outputs
  assert isinstance(packed.embedding, Quantized)
  assert (packed.readout is None) == tied
  found = dequantize_params(packed)
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(params), strict=True
  ):
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max()
    assert error <= np.abs(theirs).max() / 254 + 1e-7
    assert (error == 0) == (theirs.ndim == 1)


def test_the_cost_is_the_difference_of_two_losses_and_limited(explored_run):
  trained = load(explored_run)
  tokens = np.arange(90, dtype=np.int32) % trained.tokenizer.size
  params = dequantize_params(quantize_params(trained.params))
  cost = measure_cost(trained, params, tokens)
  assert cost.num_tokens == 90 and 0 < abs(cost.after - cost.before) < 0.01
  same = measure_cost(trained, trained.params, tokens)
  assert same.before == cost.before and abs(same.after - same.before) < 1e-6
  check_cost(Cost(1.0, 1.04, 90), "word")
  for after in (1.06, float("nan")):
    with pytest.raises(ValueError, match=r"at most 0\.05 nats per word"):
      check_cost(Cost(1.0, after, 90), "word")
  for after, said in ((1.375, "−0.1250"), (1.625, "+0.1250")):
    cost = Cost(1.5, after, 1234)
    assert describe_cost(cost, SimpleNamespace(unit="word")) == (
      f"8-bit weights cost {said} nats per word (1.5000 before, {after}0 "
      "after), on 1,234 words"
    )
