"""Ablations that were interrupted, or that are overwritten or damaged."""

import json
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import ablate, train
from experiments.comparison.ablations import (
  MEASURED,
  Ablations,
  start_times,
)
from experiments.trainer.records import replace
from tests.experiments.ablating import ROW, read_record, record_path, write_rows
from tests.experiments.conftest import copy_run, edit_config
from tests.experiments.trainer.resuming import signal_at
from tests.patterns import exact


@pytest.mark.exhaustive
def test_overwrite_trains_all_again(config, console):
  ablate.run(config, [], console)
  config = replace(config, seed=1, overwrite=True)
  rows, _ = ablate.run(config, [], console)
  record = read_record(config)
  assert (record["rows"], record["recipe"]["seed"]) == (rows, 1)


def test_overwrite_drops_no_change_that_it_does_not_name(config, console):
  write_rows(config, "base", "A=1", "B=2")
  before = record_path(config).read_bytes()
  with pytest.raises(ValueError, match=r"also holds A=1, B=2: name them with"):
    ablate.run(replace(config, overwrite=True), ["seed=1"], console)
  assert record_path(config).read_bytes() == before


@pytest.mark.exhaustive
def test_an_interrupted_overwrite_leaves_no_old_result(config, console):
  change, directory = "hidden_size=7", Path(config.job.run)
  old = ablate.run(config, [change], console).rows
  for name in ("base", change):  # as if it had started long ago
    path = directory / name / "config.json"
    record = json.loads(path.read_text()) | {"started": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps(record))
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)  # of 47 steps: between two evaluations
    result = ablate.run(replace(config, overwrite=True), [change], console)
  assert result == ([], signal.SIGTERM)
  record = read_record(config)
  assert record["rows"] == [] and len(record["outdated"]) == 2
  rows = ablate.run(config, [change], console).rows
  assert "resumed     after step" in console.file.getvalue()
  assert [row["stateful"] for row in rows] == [row["stateful"] for row in old]
  for name in ("base", change):  # it was trained anew
    record = json.loads((directory / name / "config.json").read_text())
    assert record["started"] != "2026-01-01T00:00:00Z"


def test_after_an_interrupted_overwrite_all_old_runs_are_trained_again(
  finished_config, config, console, monkeypatch
):
  names = ["base", "seed=1", "seed=2"]
  for seed, name in enumerate(names):
    single = replace(config, run=f"{config.job.run}/{name}")
    started = "2999-01-01T00:00:00Z"  # the clock was ahead
    edit_config(copy_run(finished_config, single), seed=seed, started=started)
  trained, stopped_by = [], signal.SIGTERM

  def run(single, console):
    directory = Path(single.job.run)
    trained.append((directory.name, single.job.overwrite))
    return train.Result(
      directory, best_step=47, val_loss=1.5, seconds=3.0, stopped_by=stopped_by
    )

  monkeypatch.setattr(train, "run", run)
  monkeypatch.setattr(ablate, "_measure", lambda *given: ROW)
  ablate.run(replace(config, overwrite=True), ["seed=1"], console)
  stopped_by = None
  ablate.run(config, names[1:], console)
  # base, which was stopped; then base again, and the others, also the one that
  # had no row and was not named.
  assert trained == [(name, True) for name in ("base", *names)]


@pytest.mark.parametrize("started", ["2026-11-28T04:44:10Z", 5, None])
def test_a_run_from_before_an_overwrite_is_outdated(
  started, finished, tmp_path
):
  edit_config(finished, started=started)
  not_overwritten = Ablations(recipe={}, corpus_sha256="", rows=[])
  outdated = start_times([finished, tmp_path])
  overwritten = not_overwritten._replace(outdated=outdated)
  assert overwritten.is_outdated(finished)
  assert not not_overwritten.is_outdated(finished)
  assert not overwritten.is_outdated(tmp_path)  # no run
  # The run that replaces it is newer, also if the clock was put back.
  edit_config(finished, started="2026-11-27T00:00:00Z")
  assert not overwritten.is_outdated(finished)


def test_the_results_of_another_recipe_or_corpus_are_not_mixed_in(
  config, console
):
  write_rows(config, "base")
  other = replace(config, learning_rate=0.1)
  with pytest.raises(ValueError, match=r"learning_rate was 0\.02 and is 0\.1"):
    ablate.run(other, [], console)
  with open(config.data.corpus, "a", encoding="utf-8") as corpus:
    corpus.write("More.\n")
  with pytest.raises(ValueError, match="of another corpus: "):
    ablate.run(config, [], console)


def test_a_damaged_record_is_refused(config, console, no_collection):
  write_rows(config, "base")
  record, path = read_record(config), record_path(config)
  assert ablate.run(config, [], console).rows == record["rows"]
  damaged = [
    *("{", "[]", "{}", "[" * 100_000),
    *(
      json.dumps(record | damage)
      for damage in (
        {"rows": [1]},
        {"rows": 1},
        {"rows": {}},
        {"outdated": "yesterday"},
        {"recipe": 1},
      )
    ),
    *(
      json.dumps(record | {"rows": [{"change": "base"} | ROW | damage]})
      for damage in (
        *({entry: value} for entry in MEASURED for value in (None, "?")),
        # The first row must be the base's, which cannot have diverged.
        *({"diverged": True}, {"change": "seed=1"}, {"change": 5}),
      )
    ),
  ]
  for text in damaged:
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{exact(path)} is damaged"):
      ablate.run(config, [], console)


@pytest.mark.exhaustive
def test_rows_that_another_process_adds_meanwhile_are_kept(
  config, console, monkeypatch
):
  ablate.run(config, [], console)
  path = record_path(config)
  run, other = train.run, {"change": "seed=5", "diverged": True}

  def run_beside(single, console):
    record = read_record(config)
    path.write_text(json.dumps(record | {"rows": [*record["rows"], other]}))
    return run(single, console)

  monkeypatch.setattr(train, "run", run_beside)
  rows, _ = ablate.run(config, ["hidden_size=7"], console)
  changes = [row["change"] for row in read_record(config)["rows"]]
  assert changes == ["base", "seed=5", "hidden_size=7"]
  assert [row["change"] for row in rows] == changes


def test_a_run_that_two_processes_measure_has_one_row(
  config, console, monkeypatch
):
  write_rows(config, "base")
  base, other = ({"change": name} | ROW for name in ("base", "seed=5"))

  def measure_beside(*given):
    record = read_record(config)
    rows = [*record["rows"], other]
    record_path(config).write_text(json.dumps(record | {"rows": rows}))
    return ROW | {"seconds": 4.0}

  # All that is read of the `train.Result` of a run that had finished before.
  ended = SimpleNamespace(stopped_by=None, signalled=None)
  monkeypatch.setattr(ablate, "_finished", lambda *arguments: ended)
  monkeypatch.setattr(ablate, "_measure", measure_beside)
  rows, _ = ablate.run(config, ["seed=5"], console)
  assert rows == read_record(config)["rows"] == [base, other]


@pytest.mark.exhaustive
def test_a_finished_run_without_a_row_is_measured_and_not_replaced(
  config, console, monkeypatch
):
  """The measurement was interrupted, or ablations.json was deleted."""
  changes = ["hidden_size=7"]
  rows, _ = ablate.run(config, changes, console)
  record_path(config).unlink()

  def run(*arguments):
    raise AssertionError("it was trained again")

  monkeypatch.setattr(train, "run", run)
  again, _ = ablate.run(config, changes, console)
  assert again == rows
  record_path(config).unlink()
  result = Path(config.job.run) / "base" / "result.json"
  text = result.read_text()
  result.write_text("{}")
  message = f"{exact(result)} is damaged: it must have st"
  with pytest.raises(ValueError, match=message):
    ablate.run(config, [], console)
  result.write_text(text)
  other = replace(config, learning_rate=0.1)
  message = "base holds a finished run of another configuration: learning_rate"
  with pytest.raises(ValueError, match=message):
    ablate.run(other, [], console)


def test_after_a_signal_in_the_last_evaluation_of_a_run_no_other_run_starts(
  config, console, monkeypatch
):
  log_evaluation = train.RunLogger.log_evaluation

  def log(self, val_loss, params):
    if self.step == self._setup.num_steps:
      signal.raise_signal(signal.SIGTERM)
    return log_evaluation(self, val_loss, params)

  monkeypatch.setattr(train.RunLogger, "log_evaluation", log)
  rows, stopped_by = ablate.run(config, ["hidden_size=7"], console)
  assert stopped_by == signal.SIGTERM
  assert [row["change"] for row in rows] == ["base"]


@pytest.mark.exhaustive
def test_a_signal_ends_the_runs_and_the_next_call_resumes_them(
  config, console, monkeypatch
):
  stateful_loss = train.stateful_loss

  def loss(*arguments):
    # Each run prints this heading as it starts: the second is being trained.
    if console.file.getvalue().count("\nrun         ") == 2:
      signal.raise_signal(signal.SIGTERM)
    return stateful_loss(*arguments)

  monkeypatch.setattr(train, "stateful_loss", loss)
  changes = ["hidden_size=7"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert stopped_by == signal.SIGTERM
  assert [row["change"] for row in rows] == ["base"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert stopped_by is None
  assert [row["change"] for row in rows] == ["base", *changes]
  assert "resumed     after step" in console.file.getvalue()


def test_a_signal_after_the_last_run_stops_nothing(
  config, console, monkeypatch
):
  def run(single, console):
    directory = Path(single.job.run)
    directory.mkdir(parents=True)
    return train.Result(directory, 47, 1.5, 3.0, signalled=signal.SIGTERM)

  monkeypatch.setattr(train, "run", run)
  monkeypatch.setattr(ablate, "_measure", lambda *given: ROW)
  # Every run is sent a signal as it ends: "base" here, and "seed=1" below.
  assert ablate.run(config, ["seed=1"], console).stopped_by == signal.SIGTERM
  rows, stopped_by = ablate.run(config, ["seed=1"], console)
  assert [row["change"] for row in rows] == ["base", "seed=1"]
  assert stopped_by is None


def test_a_stopped_overwrite_prints_the_command_that_resumes_it(
  config, monkeypatch, capsys
):
  stopped = ablate.Result([], signal.SIGTERM)
  changes = SimpleNamespace(value=["seed=1"])
  config = replace(config, overwrite=True)
  for name, value in (
    ("FLAGS", None),
    ("CHANGES", changes),
    ("config_from_flags", lambda *given: config),
    ("run", lambda *given: stopped),
  ):
    monkeypatch.setattr(ablate, name, value, raising=False)
  arguments = [f"--run={config.job.run}", "--overwrite", "--change=seed=1"]
  monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
  assert ablate.main() == 128 + signal.SIGTERM
  # The last of two values of a flag counts.
  command = shlex.join([*arguments, "--nooverwrite"])
  assert capsys.readouterr().out.endswith(f"experiments.ablate {command}\n")
