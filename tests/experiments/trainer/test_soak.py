"""A long run does not grow."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import train


@pytest.mark.exhaustive
def test_memory_and_compiled_programs_stay_what_they_are(config, console):
  """Four thousand updates and forty looks; the first quarter is to settle."""
  config = dataclasses.replace(
    config, num_epochs=86, eval_every=100, ema_decay=0.9, output_dropout=0.2
  )
  train.run(config, console)
  text = (Path(config.run) / "metrics.jsonl").read_text()
  looks = [
    row for row in map(json.loads, text.splitlines()) if "live_mb" in row
  ]
  looks = [row for row in looks if row["step"] > 1000 and row["step"] < 4042]
  assert len(looks) == 30
  assert len({row["compilations"] for row in looks}) == 1
  assert len({row["live_mb"] for row in looks}) == 1
  steps = [row["step"] for row in looks]
  slope, _ = np.polyfit(steps, [row["resident_mb"] for row in looks], 1)
  # Megabytes in a thousand updates, with ten looks and checkpoints: 3 while the
  # allocators settle, half of one later.
  assert slope * 1000 < 10
