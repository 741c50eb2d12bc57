"""The titles and headers of the tables of policies."""

import pytest

from experiments.policies.config import PolicyConfig, make_environment
from experiments.policies.tables import tables


def test_the_times_name_the_sizes_and_each_program():
  sizes = {"num_seeds": 2, "num_envs": 8, "rollout_steps": 16}
  sizes |= {"hidden_size": 32, "num_updates": 3, "timing_rounds": 11}
  row = {"quartiles_ms": [0.31, 14.6], "ratio_to_ours": 1.5, "compile_s": 7.0}
  record = {
    "config": sizes,
    "task": "T-maze",
    "steps_per_update": 128,
    "networks": {},
    "race": {
      "gru": [
        row | {"peer": peer, "median_ms": 4.0}
        for peer in ("unroll", "scanned", "flax")
      ]
    },
  }
  returns, (title, table) = tables(record).items()
  assert returns[0].endswith("over the last 1 of 3 updates, by seed")
  assert title == (
    "Time of an update of 2 seeds, B 8, T 16, H 32: 11 interleaved rounds"
  )
  header, _, *rows = table.splitlines()
  assert header == (
    "| network | median, ms | quartiles | ratio | compiling, s |"
  )
  assert rows == [
    f"| gru: {program} | 4 | 0.31 – 15 | 1.50 | 7.0 |"
    for program in (
      "unroll, pure functions",
      "Flax, `scanned`",
      "Flax, ScannedRNN by hand",
    )
  ]
  sizes |= {"num_updates": 1, "timing_rounds": 1}
  returns, time = tables(record | {"config": sizes})
  assert returns.endswith("over the last 1 of 1 update, by seed")
  assert time.endswith("H 32: 1 interleaved round")


@pytest.mark.parametrize(
  ("task", "title"),
  [
    ("tmaze", "T-maze, a corridor of length 7"),
    ("repeat_previous", "Repeat the symbol shown before, delay 7"),
  ],
)
def test_the_title_of_a_task_has_its_size(task, title):
  assert make_environment(PolicyConfig(task=task, size=7))[1] == title
