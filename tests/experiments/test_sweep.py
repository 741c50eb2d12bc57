import dataclasses
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments import sweep, train
from experiments.trainer import ensemble, run_dir
from experiments.trainer.ensemble import Member, SweepConfig
from lstm_jax.language import split, stateful_loss
from tests.experiments.trainer.lives import last_arrays, signal_at


def of_sweep(config, **changes):
  return SweepConfig(**dataclasses.asdict(config) | changes)


def test_members_are_the_runs_of_their_seeds_and_rates(config, console):
  config = dataclasses.replace(
    config, seed=4, ema_decay=0.9, output_dropout=0.2, eval_every=15
  )
  many = of_sweep(config, num_seeds=2, rate=[0.005, 0.03, 0.005])
  result = sweep.run(many, console)
  named = [(one.seed, one.learning_rate) for one in result.members]
  assert named == [(4, 0.005), (5, 0.005), (4, 0.03), (5, 0.03)]
  record = json.loads((Path(config.run) / "result.json").read_text())
  for one, kept in zip(result.members, record["members"], strict=True):
    assert [step for step, _ in one.looks] == [10, 15, 30, 45, 47]
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
  best = min(result.members, key=lambda one: one.best[1])
  trained = run_dir.load(Path(config.run))
  assert (trained.step, trained.held_out) == best.best
  text = Path(config.corpus).read_text()
  tokens = trained.vocabulary.encode(split(text, config.val_fraction)[1])
  again = stateful_loss(trained.model, trained.params, tokens)
  assert abs(again - trained.held_out) < 1e-6


def test_the_tables_have_each_member_and_the_spread_of_each_rate(console):
  looks = {(0, 0.1): 1.5, (1, 0.1): 1.75, (0, 0.2): math.nan}
  found = [
    Member(seed, rate, [(10, 1.9), (20, nats)])
    for (seed, rate), nats in looks.items()
  ]
  assert found[2].best == (10, 1.9)
  console.print(sweep.table(found))
  console.print(sweep.summary(found))
  rows = [line.split() for line in console.file.getvalue().splitlines()]
  assert ["0.1", "1", "1.7500", "20", "1.7500"] in rows
  assert ["0.2", "0", "1.9000", "10", "nan"] in rows
  spread = math.sqrt(2 * 0.125**2)
  assert ["0.1", "2", "1.6250", f"{spread:.4f}"] in rows
  assert ["0.2", "1", "1.9000"] in rows


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"learning_rate": 0.0}, "learning_rate must be .* got 0"),
    ({"rate": [0.0]}, "learning_rate must be positive and finite, got 0"),
    (
      {"rate": [math.inf]},
      "learning_rate must be positive and finite, got inf",
    ),
    ({"asgd_patience": 2}, "a sweep has no asgd_patience: .* got 2"),
    ({"nonfinite": "skip"}, "a sweep has no nonfinite: .* got 'skip'"),
  ],
)
def test_what_a_sweep_cannot_do_is_an_error_that_says_so(
  changes, message, config, console
):
  with pytest.raises(ValueError, match=message):
    sweep.run(of_sweep(config, **changes), console)
  assert not Path(config.run).exists()


@pytest.mark.exhaustive
def test_a_sweep_that_was_stopped_ends_as_one_that_was_not(
  config, console, monkeypatch
):
  """At a look, and at an update between two; one of its members diverges."""
  config = of_sweep(
    config,
    num_seeds=2,
    rate=[0.005, 1e30],
    ema_decay=0.9,
    output_dropout=0.2,
    late_batch_size=4,
    eval_every=10,
  )
  whole = sweep.run(dataclasses.replace(config, run=f"{config.run}2"), console)
  assert whole.stopped_by is None
  assert np.isnan(whole.members[2].looks[-1][1])

  for step in (10, 23):
    with monkeypatch.context() as patched:
      maker = ensemble, "make_ensemble_train_step"
      signal_at(patched, step, signal.SIGTERM, maker)
      stopped = sweep.run(config, console)
    assert stopped.stopped_by == signal.SIGTERM
    assert not (stopped.directory / "result.json").exists()
  result = sweep.run(config, console)
  assert result.stopped_by is None
  looks = ([one.looks for one in r.members] for r in (result, whole))
  assert np.array_equal(*looks, equal_nan=True)
  assert last_arrays(result.directory) == last_arrays(whole.directory)
  text = console.file.getvalue()
  assert "goes on     after update 10" in text
  assert "goes on     after update 23" in text


def test_a_sweep_goes_on_with_a_sweep_alone(config, console, monkeypatch):
  many = of_sweep(config, num_seeds=2)
  with monkeypatch.context() as patched:
    signal_at(patched, 3, maker=(ensemble, "make_ensemble_train_step"))
    sweep.run(many, console)
  other = dataclasses.replace(many, num_seeds=3)
  with pytest.raises(ValueError, match="num_seeds is 2 there and 3 here"):
    sweep.run(other, console)
  with pytest.raises(ValueError, match="can be used"):
    train.run(config, console)
  with monkeypatch.context() as patched:
    alone = dataclasses.replace(config, run=f"{config.run}2")
    signal_at(patched, 3)
    train.run(alone, console)
  many = of_sweep(alone, num_seeds=2)
  with pytest.raises(ValueError, match="num_seeds is None there and 2 here"):
    sweep.run(many, console)
