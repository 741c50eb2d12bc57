import dataclasses
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments import sweep, train
from experiments.sweep import Member


def test_members_are_the_runs_of_their_seeds_and_rates(config, console):
  config = dataclasses.replace(
    config, seed=4, average=0.9, output_dropout=0.2, eval_every=15
  )
  result = sweep.run(config, 2, [0.005, 0.03], console)
  named = [(one.seed, one.learning_rate) for one in result.members]
  assert named == [(4, 0.005), (5, 0.005), (4, 0.03), (5, 0.03)]
  record = json.loads((Path(config.run) / "result.json").read_text())
  for one, kept in zip(result.members, record["members"], strict=True):
    assert [step for step, _ in one.looks] == [15, 30, 45, 47]
    assert kept["looks"] == [list(look) for look in one.looks]
  for index in (0, 3):
    one = result.members[index]
    alone = dataclasses.replace(
      config,
      seed=one.seed,
      learning_rate=one.learning_rate,
      run=f"{config.run}{index}",
    )
    train.run(alone, console)
    text = (Path(alone.run) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    nats = {r["step"]: r["held_out"] for r in rows if "held_out" in r}
    found, expected = zip(*((x, nats[n]) for n, x in one.looks), strict=True)
    assert np.allclose(found, expected, atol=2e-5)  # float32, 47 updates
  assert abs(result.members[0].best[1] - result.members[1].best[1]) > 1e-3


def test_the_tables_have_each_member_and_the_spread_of_each_rate(console):
  looks = {(0, 0.1): 1.5, (1, 0.1): 1.75, (0, 0.2): math.nan}
  members = [
    Member(seed, rate, [(10, 1.9), (20, nats)])
    for (seed, rate), nats in looks.items()
  ]
  assert members[2].best == (10, 1.9)
  console.print(sweep.table(members))
  console.print(sweep.summary(members))
  rows = [line.split() for line in console.file.getvalue().splitlines()]
  assert ["0.1", "1", "1.7500", "20", "1.7500"] in rows
  assert ["0.2", "0", "1.9000", "10", "nan"] in rows
  spread = math.sqrt(2 * 0.125**2)
  assert ["0.1", "2", "1.6250", f"{spread:.4f}"] in rows
  assert ["0.2", "1", "1.9000"] in rows


@pytest.mark.parametrize(
  ("changes", "rates", "message"),
  [
    ({}, [0.0], "learning_rate must be positive and finite, got 0"),
    ({}, [math.inf], "learning_rate must be positive and finite, got inf"),
    ({"average_after": 2}, [], "a sweep has no average_after: .* got 2"),
    ({"nonfinite": "skip"}, [], "a sweep has no nonfinite: .* got 'skip'"),
  ],
)
def test_what_a_sweep_cannot_do_is_an_error_that_says_so(
  changes, rates, message, config, console
):
  config = dataclasses.replace(config, **changes)
  with pytest.raises(ValueError, match=message):
    sweep.run(config, 2, rates, console)
  assert not Path(config.run).exists()


def test_a_signal_ends_a_sweep_and_is_told(config, console, monkeypatch):
  def loss(*_):
    signal.raise_signal(signal.SIGTERM)
    return 2.5

  monkeypatch.setattr(sweep, "stateful_loss", loss)
  config = dataclasses.replace(config, eval_every=20)
  result = sweep.run(config, 1, [], console)
  assert result.stopped_by == signal.SIGTERM
  assert result.members[0].looks == [(20, 2.5)]
  record = json.loads((Path(config.run) / "result.json").read_text())
  assert record["stopped_by"] == "SIGTERM"
