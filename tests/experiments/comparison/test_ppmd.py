"""What PPMd, a compressor that learns as it reads, costs on the text."""

import math
import os
from pathlib import Path

import pytest

from experiments.comparison.board import read_board

ORDER, MEMORY = 6, 2**26  # characters of context; bytes


def test_the_loss_of_ppmd_is_what_it_takes_to_code_the_last_tenth():
  """The bytes for the whole text, minus those for its first nine tenths."""
  pyppmd = pytest.importorskip("pyppmd")
  path = os.environ.get("LSTM_JAX_DATA")
  if path is None:
    pytest.skip("LSTM_JAX_DATA names no copy of Tiny Shakespeare")
  text = Path(path).read_bytes()
  first = math.floor(0.9 * len(text))

  def coded(part):
    encoder = pyppmd.Ppmd8Encoder(ORDER, MEMORY)
    return len(encoder.encode(part) + encoder.flush())

  num_bytes = coded(text) - coded(text[:first])
  nats = 8 * math.log(2) * num_bytes / (len(text) - first)
  (row,) = (row for row in read_board().rows if row.name == "PPMd")
  assert abs(row.result("dynamic").mean - nats) < 6e-5  # the board rounds it
