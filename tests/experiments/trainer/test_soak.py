"""The memory of a long run does not grow."""

import numpy as np
import pytest

from experiments import train
from experiments.trainer.memory import STATM
from experiments.trainer.records import replace
from tests.experiments.trainer.resuming import read_rows


@pytest.mark.exhaustive
@pytest.mark.skipif(not STATM.exists(), reason="no /proc/self/statm here")
def test_memory_and_compiled_programs_stay_what_they_are(config, console):
  """From the evaluation at step 1,100 to that at 4,000, of 86 · 47 steps."""
  config = replace(
    config, num_epochs=86, eval_every=100, ema_decay=0.9, output_dropout=0.2
  )
  train.run(config, console)
  counted = range(1100, 4001, 100)
  rows = [row for row in read_rows(config.job.run) if row["step"] in counted]
  evaluations = [row for row in rows if "live_mb" in row]
  assert len(evaluations) == len(counted)
  assert evaluations[0]["compilations"] > 0
  assert len({row["compilations"] for row in evaluations}) == 1
  assert len({row["live_mb"] for row in evaluations}) == 1
  steps = [row["step"] for row in evaluations]
  slope, _ = np.polyfit(steps, [row["resident_mb"] for row in evaluations], 1)
  # Megabytes in a thousand steps, with ten evaluations and checkpoints: 0.5 was
  # found, and 3 in the first quarter, where the allocators settle.
  assert slope * 1000 < 3
