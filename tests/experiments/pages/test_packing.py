"""Templates that are filled, and numbers that are rounded to a byte each."""

import base64
import gzip
import re

import numpy as np
import pytest

from experiments.pages import explore, report, writer
from experiments.pages.packing import (
  Blobs,
  quantize_gate,
  quantize_norms,
  quantize_signed,
  script,
)


@pytest.mark.parametrize(
  "template", [explore.TEMPLATE, report.TEMPLATE, writer.TEMPLATE]
)
def test_every_page_has_the_shared_head_once_and_its_data(template):
  blobs = Blobs()
  blobs.add(np.zeros(3))
  text = blobs.page(template, {"unit": "word"})
  for part in (
    "Content-Security-Policy",
    "async function unpack(",
    'id="header"',
    'id="blob0"',
    "</head>",
  ):
    assert text.count(part) == 1
  assert text.index("unpack(") < text.index("</head>") < text.index("blob0")
  assert "<script src" not in text
  assert "<!-- head -->" not in text and "<!-- data -->" not in text


def test_the_same_data_is_the_same_page_and_a_nan_is_refused():
  _, _, packed, _, _ = re.split("[<>]", script("blob0", b"data"))
  raw = base64.b64decode(packed)
  assert gzip.decompress(raw) == b"data"
  assert raw[4:8] == bytes(4)  # gzip's time stamp
  with pytest.raises(ValueError, match="JSON"):
    Blobs().page(report.TEMPLATE, {"loss": float("nan")})


def test_a_gate_is_rounded_to_half_a_level():
  values = np.random.default_rng(0).random((3, 50))
  values[0, :2] = 0, 1
  levels = quantize_gate(values)
  assert levels.dtype == np.uint8
  assert levels[0, :2].tolist() == [0, 255]
  assert np.abs(levels / 255 - values).max() <= 0.5 / 255 + 1e-12


def test_a_signed_signal_is_rounded_to_half_a_level_of_its_unit():
  values = np.random.default_rng(0).standard_normal((4, 50)) * 10
  values[1] *= 1e-6
  values[2] = 0
  values[0, 3] = 0
  levels, largest = quantize_signed(values)
  assert levels.dtype == np.uint8
  assert np.array_equal(largest, np.abs(values).max(axis=1))
  decoded = (levels.astype(float) - 128) / 127 * largest[:, None]
  error = np.abs(decoded - values).max(axis=1)
  assert (error <= 0.5 / 127 * largest + 1e-12).all()
  assert (decoded[0, 3], decoded[2].any(), largest[2]) == (0, False, 0)


def test_a_norm_is_rounded_to_six_per_cent_over_twelve_decades():
  values = 10 ** np.linspace(-20, 3, 200).reshape(4, 50)
  values[0, 0] = 0
  levels, low, high = quantize_norms(values)
  assert levels.dtype == np.uint8
  assert (levels[0, 0], low, high) == (0, -9, 3)
  decoded = 10 ** (low + (levels - 1.0) / 254 * (high - low))
  in_range = values >= 1e-9
  assert np.abs(decoded[in_range] / values[in_range] - 1).max() < 0.056
  assert (levels[(values > 0) & (values < 1e-9)] == 1).all()
  levels, low, high = quantize_norms(np.zeros((2, 3)))
  assert not levels.any() and high > low
  levels, low, high = quantize_norms(np.full((2, 3), 0.1))
  assert (levels == 1).all() and abs(low + 1) < 1e-12 and high > low
