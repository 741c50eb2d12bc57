"""Sweeps: their members, losses and tables, and what they refuse."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import sweep, train
from experiments.trainer import display, sweep_members
from experiments.trainer.data import read_corpus
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from experiments.trainer.sweep_members import Member, make_members
from experiments.trainer.trained import load
from lstm_jax.language import stateful_loss
from tests.experiments.sweep.sweeps import as_sweep
from tests.experiments.trainer.resuming import read_rows, signal_at


@pytest.mark.exhaustive
def test_members_are_the_runs_of_their_seeds_and_rates(recipe, many, console):
  config = recipe
  result = sweep.run(many, console)
  named = [(one.seed, one.learning_rate) for one in result.members]
  assert named == [(4, 0.005), (5, 0.005), (4, 0.03), (5, 0.03)]
  record = json.loads((Path(config.job.run) / "result.json").read_text())
  for one, saved in zip(result.members, record["members"], strict=True):
    # Each 15th step, EARLY_STEPS and the last.
    assert [step for step, _ in one.val_losses] == [10, 15, 30, 45, 47]
    assert saved["val_losses"] == [list(pair) for pair in one.val_losses]
  for index in (0, 3):
    one = result.members[index]
    alone = replace(
      config,
      seed=one.seed,
      learning_rate=one.learning_rate,
      run=f"{config.job.run}{index}",
    )
    train.run(alone, console)
    rows = read_rows(alone.job.run)
    expected = [(r["step"], r["val_loss"]) for r in rows if "val_loss" in r]
    # In float32, after 47 training steps.
    assert np.allclose(one.val_losses, expected, rtol=0, atol=2e-5)
  assert abs(result.members[0].best[1] - result.members[1].best[1]) > 1e-3
  best = min(result.members, key=lambda one: one.best[1])
  trained = load(Path(config.job.run))
  assert (trained.step, trained.val_loss) == best.best
  val = read_corpus(config.data).val
  again = stateful_loss(trained.model, trained.params, val.tokens)
  assert abs(again - trained.val_loss) < 1e-6


@pytest.mark.exhaustive
def test_a_sweep_whose_members_all_diverge_ends_without_a_best(config, console):
  diverging = as_sweep(config, num_seeds=2, rate=(1e30,))
  with pytest.raises(Diverged, match="every member of the sweep has diverged"):
    sweep.run(diverging, console)
  result = json.loads((Path(config.job.run) / "result.json").read_text())
  for one in result["members"]:
    assert [loss for _, loss in one["val_losses"]][-1] is None
  assert "to sample from" not in console.file.getvalue()


def test_seeds_are_those_that_a_run_may_have(config):
  with pytest.raises(ValueError, match="last seed must be at most 2147483647"):
    make_members(as_sweep(config, seed=2**31 - 1, num_seeds=2))
  with pytest.raises(ValueError, match=r"seed must be in \[0, 2147483647\]"):
    as_sweep(config, seed=2**32)


def test_members_are_not_listed_before_their_memory_is_checked(
  many, console, monkeypatch
):
  assert sweep_members.num_members(many) == len(make_members(many)) == 4
  no_rate = replace(many, rate=())
  assert sweep_members.num_members(no_rate) == len(make_members(no_rate)) == 2
  monkeypatch.setattr(sweep, "make_members", None)  # is not called
  end = "the members of a sweep, or on a CPU --devices"
  with pytest.raises(ValueError, match=f"^out of memory: .*, {end}$"):
    sweep.run(replace(many, num_seeds=2**31 - 1), console)


def test_a_loss_that_is_not_finite_is_not_the_best_of_a_member():
  losses = [(10, math.nan), (20, 2.0), (30, math.nan)]
  assert Member(0, 0.1, losses).best == (20, 2.0)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_resumed_sweep_says_that_its_best_weights_are_lost(
  config, console, monkeypatch, garbage_collected
):
  config = as_sweep(config, num_seeds=2, rate=(0.03,), eval_every=10)
  with monkeypatch.context() as patched:
    signal_at(patched, 23, maker=(sweep_members, "make_ensemble_train_step"))
    directory = sweep.run(config, console).directory
  # The checkpoint of step 20 has the lowest loss so far: cut off its weights.
  for path in directory.glob("checkpoints/20/params/**/d/*"):
    path.write_bytes(path.read_bytes()[:-20])
  sweep.run(config, console)
  shown = console.file.getvalue()
  assert "resumed     after step 23" in shown
  assert "the best weights, of step 20 and a loss of" in shown


def test_the_tables_have_each_member_and_the_deviation_at_each_rate(console):
  last = {(0, 0.1): 1.5, (1, 0.1): 1.75, (0, 0.1000001): math.nan}
  members = [
    Member(seed, rate, [(10, 1.9), (20, nats)])
    for (seed, rate), nats in last.items()
  ]
  assert members[2].best == (10, 1.9)
  console.print(sweep.member_table(members))
  console.print(sweep.rate_table(members))
  rows = [line.split() for line in console.file.getvalue().splitlines()]
  assert ["0.1", "0", "1.5000", "20", "1.5000"] in rows
  assert ["0.1", "1", "1.7500", "20", "1.7500"] in rows
  assert ["0.1000001", "0", "1.9000", "10", "nan"] in rows
  deviation = math.sqrt(2 * 0.125**2)
  assert ["0.1", "2", "1.6250", f"{deviation:.4f}"] in rows
  assert ["0.1000001", "1", "1.9000"] in rows


def test_an_infinite_loss_has_no_deviation(console):
  members = [Member(seed, 0.1, [(1, math.inf)]) for seed in (0, 1)]
  console.print(sweep.rate_table(members))
  assert ["0.1", "2", "inf", "nan"] in [
    line.split() for line in console.file.getvalue().splitlines()
  ]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"learning_rate": 0.0}, "learning_rate must be .* got 0"),
    ({"rate": (0.0,)}, r"rate must be in \(0, inf\), got \(0\.0,\)"),
    ({"rate": (math.inf,)}, r"rate must be in \(0, inf\), got \(inf,\)"),
    (
      {"asgd_patience": 2},
      "a sweep does not support --asgd_patience: it must be 0, got 2",
    ),
    (
      {"nonfinite": "skip"},
      "a sweep does not support --nonfinite: it must be 'stop', got 'skip'",
    ),
    (
      {"implementation": "mosaic_gpu"},
      "a sweep does not support --implementation: it must be None, got 'mosaic",
    ),
  ],
)
def test_what_a_sweep_does_not_support_is_an_error_that_names_it(
  changes, message, config, console
):
  with pytest.raises(ValueError, match=message):
    sweep.run(as_sweep(config, **changes), console)
  assert not Path(config.job.run).exists()


def test_the_help_and_the_docs_name_what_a_sweep_does_not_support():
  docs = Path(__file__).parents[3] / "docs" / "running.md"
  section = docs.read_text(encoding="utf-8").split("## Several seeds and ")[1]
  (listed,) = re.findall(r"What a sweep does not do\s\(([^)]*)\)", section)
  assert re.findall(r"--(\w+)", listed) == [*sweep.UNSUPPORTED]
  (refused,) = re.findall(r"a sweep\srefuses ([^.]*)\.", sweep.__doc__)
  assert re.findall(r"--(\w+)", refused) == [*sweep.UNSUPPORTED]


def test_more_devices_than_jax_has_started_are_refused(many, console):
  message = "--devices must be at most 1, as many as JAX has started, got 4"
  with pytest.raises(ValueError, match=message):
    sweep.run(replace(many, devices="4"), console)
  assert not Path(many.job.run).exists()


@pytest.mark.exhaustive
def test_the_bar_of_a_sweep_moves_at_every_step_and_shows_its_speed(
  many, console, monkeypatch
):
  steps, shown = [], []
  for name, values in (("advance", steps), ("update", shown)):
    monkeypatch.setattr(
      display.TrainingBar,
      name,
      lambda bar, *given, values=values: values.append(given),
    )
  result = sweep.run(many, console)
  assert steps == [(step,) for step in range(1, 48)]
  assert [step for step, *_ in shown] == [10, 15, 30, 45, 47]
  assert all(0 < loss < 5 for _, loss, _ in shown)
  *_, (*_, speed) = shown  # the last one is of the whole training
  num_tokens = len(read_corpus(many.data).train.tokens)
  assert abs(speed * result.seconds - 4 * num_tokens) < 1e-6 * num_tokens
