"""A reproduction trains and evaluates what is missing, and compares."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import evaluate, reproduce, train
from experiments.comparison.published import UNIT
from experiments.comparison.reproduction import read_done
from experiments.trainer.environment import environment_of
from experiments.trainer.records import replace
from experiments.trainer.run_dir import read_config
from tests.experiments.conftest import copy_run
from tests.experiments.reproduce.rows import ROW, forbid
from tests.experiments.trainer.resuming import signal_at
from tests.patterns import exact


@pytest.fixture
def trained(recipe, finished_config, config):
  """Return `recipe`, with a finished run of seed 0 that is not evaluated."""
  directory = f"{recipe.run}/seed0"
  copy_run(finished_config, replace(config, run=directory))
  return recipe


def read(recipe):
  return json.loads((Path(recipe.run) / "reproduction.json").read_text())


def test_a_finished_run_is_evaluated_once_and_compared(
  trained, console, monkeypatch
):
  forbid(monkeypatch, train)
  path = Path(f"{trained.run}/seed0/result.json")
  cost = json.loads(path.read_text()) | {"seconds": 75.6}
  path.write_text(json.dumps(cost))
  with pytest.MonkeyPatch.context() as patch:
    calls = []
    original = evaluate.run
    patch.setattr(
      evaluate, "run", lambda *args: calls.append(args) or original(*args)
    )
    result = reproduce.run(ROW, trained, console)
  ((config, _),) = calls
  assert config.protocol == ("cold", "stateful")
  saved = json.loads(Path(f"{trained.run}/seed0/evaluation.json").read_text())
  cold, stateful = result.rows
  assert cold["values"] == [saved[UNIT]["cold"]]
  assert cold["published"] == {"mean": 1.5, "std": None}  # that of seed 0
  assert cold["difference"] == saved[UNIT]["cold"] - 1.5
  assert stateful["published"] == {"mean": 1.75, "std": None}
  record = read(trained)
  assert record["results"] == result.rows
  assert record["seeds"]["0"]["step"] == saved["step"]
  assert record["seeds"]["0"]["seconds"] == 75.6
  made = json.loads(Path(f"{trained.run}/seed0/config.json").read_text())
  environment = record["seeds"]["0"]["environment"]
  assert environment == environment_of(made)  # a commit only in a checkout
  shown = console.file.getvalue()
  assert f"{cold['mean']:.4f}" in shown
  assert f"{cold['difference']:+.4f}" in shown
  assert "minutes of training: 1.3; published 2 to 3, a core\n" in shown
  assert "\nnot evaluated here: ensemble_stateful, of seeds 0, 1\n" in shown

  forbid(monkeypatch, evaluate)
  assert reproduce.run(ROW, trained, console) == result


def test_the_seeds_together_are_evaluated_once_and_compared(
  trained, config, console, monkeypatch
):
  """Here both runs have the same weights, so that together they are as one."""
  forbid(monkeypatch, train)
  row = ROW._replace(evaluate=["--window=8"])
  other = replace(config, run=f"{trained.run}/seed1")
  copy_run(replace(config, run=f"{trained.run}/seed0"), other)
  made = json.loads(Path(f"{trained.run}/seed1/config.json").read_text())
  changed = json.dumps(made | {"seed": 1})
  Path(f"{trained.run}/seed1/config.json").write_text(changed)
  both = replace(trained, seeds=(0, 1))
  path, original = Path(trained.run) / "reproduction.json", evaluate.run

  def while_another_process_adds_a_seed(options, console):
    if options.run == tuple(f"{trained.run}/seed{seed}" for seed in (0, 1)):
      record = read(trained)
      record["seeds"]["7"] = record["seeds"]["0"]
      path.write_text(json.dumps(record))
    return original(options, console)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluate, "run", while_another_process_adds_a_seed)
    rows = reproduce.run(row, both, console).rows
  assert read(trained)["seeds"].keys() == {"0", "1", "7"}
  cold, stateful, together = rows
  assert together["protocol"] == "ensemble_stateful"
  assert together["mean"] == pytest.approx(stateful["mean"], rel=1e-6)
  assert together["mean"] != cold["mean"]
  assert together["difference"] == together["mean"] - 1.0
  assert together["seeds"] == [0, 1]
  assert read(trained)["results"] == rows
  saved = json.loads(Path(f"{trained.run}/seed0/ensemble.json").read_text())
  assert saved["members"] == 2
  assert [together["mean"]] == [saved[UNIT]["stateful"]]

  with pytest.MonkeyPatch.context() as patch:
    forbid(patch, evaluate)
    assert reproduce.run(row, both, console).rows == rows
  record = read(trained)
  for damaged in ({}, {"stateful": "1"}, [1]):
    path.write_text(json.dumps(record | {"together": damaged}))
    assert reproduce.run(row, both, console).rows == rows
  assert len(reproduce.run(row, trained, console).rows) == 2  # of one seed


def test_other_flags_of_evaluation_or_a_damaged_entry_evaluate_again(
  trained, console, monkeypatch, no_collection
):
  before = reproduce.run(ROW, trained, console).rows[0]
  path = Path(trained.run) / "reproduction.json"
  narrow = ROW._replace(evaluate=["--window=8"])
  (row, _) = reproduce.run(narrow, trained, console).rows
  assert row["mean"] > before["mean"]  # with less context
  assert read(trained)["evaluate"] == ["--window=8"]
  good = read(trained)
  seed = good["seeds"]["0"]
  damaged = [
    good | {"seeds": {"0": seed | {k: None}}} for k in (UNIT, "seconds")
  ]
  damaged.append(good | {"seeds": {"0": {}}})
  damaged.append(good | {"seeds": {"0": seed | {"seconds": "12"}}})
  for text in ("{", "[]", *map(json.dumps, damaged)):
    path.write_text(text)
    assert reproduce.run(narrow, trained, console).rows[0] == row
    assert read(trained)["seeds"] == good["seeds"]
  path.write_text("[" * 100_000)
  assert read_done(path, narrow) == {}
  # An undamaged entry of another seed, which is not asked for, is kept.
  both = good | {"seeds": {"0": {}, "7": seed}}
  path.write_text(json.dumps(both))
  reproduce.run(narrow, trained, console)
  assert read(trained)["seeds"] == {"0": seed, "7": seed}


def test_what_another_process_adds_during_an_evaluation_is_kept(
  trained, console, monkeypatch
):
  """It adds the entry of seed 1, and the losses of the ensemble."""
  path = Path(trained.run) / "reproduction.json"
  reproduce.run(ROW, trained, console)
  record, together = json.loads(path.read_text()), {"stateful": 1.25}
  path.unlink()
  original = evaluate.run

  def run(*args):
    others = {"seeds": {"1": record["seeds"]["0"]}, "together": together}
    path.write_text(json.dumps(record | others))
    return original(*args)

  monkeypatch.setattr(evaluate, "run", run)
  reproduce.run(ROW, trained, console)
  assert read(trained)["seeds"].keys() == {"0", "1"}
  assert read(trained)["together"] == together


def test_a_run_without_its_seconds_is_an_error_of_one_line(trained, console):
  result = Path(trained.run) / "seed0" / "result.json"
  result.write_text("{}")
  message = f"{exact(result)} is damaged: it has no sec"
  with pytest.raises(ValueError, match=message):
    reproduce.run(ROW, trained, console)


def test_a_run_of_another_recipe_is_refused(trained, console):
  other = ROW._replace(flags=["--learning_rate=0.5"])
  message = "seed0 holds a finished run .*: learning_rate is .* 0.5 here; "
  with pytest.raises(ValueError, match=message):
    reproduce.run(other, trained, console)


def test_the_directory_of_all_seeds_must_not_be_a_run_directory(
  trained, console, monkeypatch
):
  forbid(monkeypatch, train)
  run = f"{trained.run}/seed0"
  message = f"all seeds, got {exact(run)}, which is a run"
  with pytest.raises(ValueError, match=message):
    reproduce.run(ROW, replace(trained, run=run), console)


def test_a_run_on_an_earlier_text_is_refused(trained, config, console):
  corpus = Path(config.data.corpus)
  corpus.write_text(corpus.read_text() + "more")
  message = "seed0 holds a finished run .*: the corpus has changed; another"
  with pytest.raises(ValueError, match=message):
    reproduce.run(ROW, trained, console)


@pytest.mark.exhaustive
def test_an_interrupted_training_is_resumed(recipe, console):
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    result = reproduce.run(ROW, recipe, console)
  assert result == ([], signal.SIGTERM)
  assert not (Path(recipe.run) / "reproduction.json").exists()
  result = reproduce.run(ROW, recipe, console)
  assert not result.stopped_by and len(result.rows) == 2
  steps = Path(f"{recipe.run}/seed0/metrics.jsonl").read_text()
  assert '"step": 30' in steps and "resumed" in console.file.getvalue()


def test_a_run_that_was_trained_again_is_evaluated_again(
  trained, config, finished_config, console, monkeypatch
):
  """Here it is interrupted between its training and its evaluation."""
  first = reproduce.run(ROW, trained, console).rows
  path = Path(trained.run) / "reproduction.json"
  record = read(trained)
  for name in record["seeds"]["0"][UNIT]:
    record["seeds"]["0"][UNIT][name] = 9.9
  path.write_text(json.dumps(record))
  shutil.rmtree(Path(trained.run) / "seed0")

  def train_again(single, console):
    made = copy_run(finished_config, replace(config, run=single.job.run))
    return SimpleNamespace(directory=made, stopped_by=None, signalled=None)

  def interrupted(job, console):
    raise KeyboardInterrupt

  monkeypatch.setattr(train, "run", train_again)
  with monkeypatch.context() as patched:
    patched.setattr(reproduce, "_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
      reproduce.run(ROW, trained, console)
  assert reproduce.run(ROW, trained, console).rows == first


@pytest.mark.parametrize(("seed", "kept"), [(7, True), (1, False)])
def test_a_new_run_drops_the_ensemble_result_only_if_its_seed_is_a_member(
  trained, config, finished_config, console, monkeypatch, seed, kept
):
  reproduce.run(ROW, trained, console)
  path = Path(trained.run) / "reproduction.json"
  together = {"stateful": 1.25}
  path.write_text(json.dumps(read(trained) | {"together": together}))

  def train_seed(single, console):
    made = copy_run(finished_config, replace(config, run=single.job.run))
    record = json.loads((made / "config.json").read_text()) | {"seed": seed}
    (made / "config.json").write_text(json.dumps(record))
    return SimpleNamespace(directory=made, stopped_by=None, signalled=None)

  monkeypatch.setattr(train, "run", train_seed)
  reproduce.run(ROW, replace(trained, seeds=(seed,)), console)
  assert read(trained)["together"] == (together if kept else {})
  assert read(trained)["seeds"].keys() == {"0", f"{seed}"}


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_run_that_was_or_would_be_extended_is_refused(
  trained, console, monkeypatch, unfinished
):
  """Its learning rates are not those of the recipe."""
  forbid(monkeypatch, train)
  forbid(monkeypatch, evaluate)
  directory = Path(f"{trained.run}/seed0")
  path, record = directory / "config.json", read_config(directory)
  if unfinished:
    (directory / "result.json").unlink()
    record["num_epochs"] = 0
  else:
    record["extensions"] = [{"before": {"num_epochs": 0}}]
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match="seed0 holds a run that began with num"):
    reproduce.run(ROW, trained, console)
