"""What an ablation trains, measures, keeps and prints, and what it refuses."""

import json
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from experiments import ablate, evaluate, train
from experiments.comparison.ablations import Ablations, make_table
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus import read_corpus_text, text_sha256
from experiments.trainer.data import read_corpus
from experiments.trainer.environment import environment
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from experiments.trainer.run_dir import recorded_flags
from experiments.trainer.trained import load
from lstm_jax.language.evaluate import stateful_loss
from tests.experiments.conftest import (
  DIVERGES,
  VERSE,
  VERSES,
  copy_run,
  edit_config,
)
from tests.experiments.trainer.resuming import signal_at
from tests.patterns import exact

WILD = ",".join(f"{name}={value}" for name, value in DIVERGES.items())
# The numbers of a row. "cold" and "stateful" are losses, with the state reset
# for each window and carried on.
NUMBERS = {"parameters": 1, "cold": 2.0, "stateful": 1.5, "seconds": 3.0}


def record_path(config):
  return Path(config.job.run) / ablate.RECORD


def read_record(config):
  return json.loads(record_path(config).read_text(encoding="utf-8"))


def write_rows(config, *changes):
  """Write a record that has a row for each change, without training."""
  rows = [{"change": name} | NUMBERS for name in changes]
  sha256 = text_sha256(read_corpus_text(config.data.corpus))
  recipe = {
    name: value
    for name, value in recorded_flags(config).items()
    if name not in ablate.JOB_FLAGS
  }
  split = "dev" if config.data.dev_fraction else "val"
  Path(config.job.run).mkdir()
  Ablations(recipe, sha256, split, rows, {}).write(record_path(config))


@pytest.fixture
def quick(finished_config, config, monkeypatch):
  """Have `train.run` copy a finished run; return the runs that it made.

  They are (name, whether its directory was empty). A function that is set as
  `quick.then` is called after each and returns entries of `train.Result`.
  """
  made = SimpleNamespace(runs=[], then=lambda name: {})

  def run(single, console):
    directory = Path(single.job.run)
    made.runs.append((directory.name, not directory.exists()))
    copied = replace(config, run=str(directory))
    copy_run(finished_config, copied)
    edit_config(directory, **recorded_flags(single))
    more = made.then(directory.name)
    return train.Result(directory, 47, 1.5, 3.0, **more)

  monkeypatch.setattr(train, "run", run)
  return made


def test_each_change_is_trained_once_and_measured(config, console):
  """The losses are of the validation split: the test split plays no part."""
  config = replace(config, test_fraction=0.2)
  changes = ["output_dropout=0.5"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert [row["change"] for row in rows] == ["base", *changes]
  assert stopped_by is None
  val = read_corpus(config.data).val
  for row in rows:
    trained = load(Path(config.job.run) / row["change"])
    nats = stateful_loss(trained.model, trained.params, val.tokens)
    assert abs(row["stateful"] - nats) < 1e-6
    assert row["step"] == trained.step and row["val_loss"] == trained.val_loss
    assert row["cold"] > 0 and row["seconds"] > 0
    assert {"versions", "device"} <= {*row["environment"]}
  record = read_record(config)
  assert record["rows"] == rows and record["split"] == "val"
  assert record["recipe"]["hidden_size"] == config.model.hidden_size
  printed = console.file.getvalue()
  assert "cold, stateful: nats per token of the validation split\n" in printed
  difference = f"{rows[1]['stateful'] - rows[0]['stateful']:+.4f}"
  assert re.search(rf"output_dropout=0.5 .* {re.escape(difference)}", printed)


def test_what_has_a_row_or_has_finished_is_not_trained_again(
  config, console, quick
):
  first = ablate.run(config, ["seed=1"], console).rows
  assert quick.runs == [("base", True), ("seed=1", True)]
  assert ablate.run(config, ["seed=1"], console).rows == first
  record_path(config).unlink()
  assert ablate.run(config, ["seed=1"], console).rows == first
  assert len(quick.runs) == 2
  rows, _ = ablate.run(config, ["seed=2"], console)
  assert [row["change"] for row in rows] == ["base", "seed=1", "seed=2"]
  record_path(config).unlink()
  other = replace(config, learning_rate=0.1)
  message = "base holds a finished run of another configuration: learning_rate"
  with pytest.raises(ValueError, match=message):
    ablate.run(other, [], console)


def test_the_table_names_the_development_split_of_a_recipe_that_has_one(
  config, console
):
  with open(config.data.corpus, "w", encoding="utf-8") as file:
    file.writelines(f"{VERSE}Number {n}.\n\n" for n in range(30))
  config = replace(config, dev_fraction=0.2)
  write_rows(config, "base")
  ablate.run(config, [], console)
  printed = console.file.getvalue()
  assert "cold, stateful: nats per token of the development split\n" in printed


def test_the_table_compares_the_stateful_losses_with_the_base():
  base = {"change": "base", "parameters": 1000, "cold": 2.0, "stateful": 1.5}
  worse = {"change": "seed=1", "parameters": 1200, "cold": 3.0, "stateful": 1e5}
  better = {"change": "num_layers=2", "parameters": 20, "cold": 1.4}
  rows = [
    base | {"seconds": 3.4},
    worse | {"seconds": 61.7},
    {"change": "tied=true", "diverged": True},
    better | {"stateful": 1.25, "seconds": 60.0},
  ]
  columns = [[*column.cells] for column in make_table(rows).columns]
  assert [*zip(*columns, strict=True)] == [
    ("base", "1,000", "2.0000", "1.5000", "", "3"),
    ("seed=1", "1,200", "3.0000", "1e+05", "+1e+05", "62"),
    ("tied=true", "", "", "diverged", "", ""),
    ("num_layers=2", "20", "1.4000", "1.2500", "-0.2500", "60"),
  ]


def test_the_devices_are_chosen_for_all_runs_at_once(
  config, console, monkeypatch
):
  shared, trained = [], []

  def share_batches(configs):
    shared.extend(one.job.run for one in configs)
    return [replace(one, devices="3") for one in configs]

  def run(single, console):
    trained.append((single.job.run, single.job.devices))
    raise KeyboardInterrupt

  monkeypatch.setattr(ablate, "share_batches", share_batches)
  monkeypatch.setattr(ablate, "check_changes", lambda configs: None)
  monkeypatch.setattr(train, "run", run)
  with pytest.raises(KeyboardInterrupt):
    ablate.run(config, ["hidden_size=7"], console)
  base = f"{config.job.run}/base"
  assert shared == [base, f"{config.job.run}/hidden_size=7"]
  assert trained == [(base, "3")]
  assert not Path(config.job.run).exists()


def test_a_change_that_diverges_is_marked_and_the_others_are_trained(
  config, console, quick
):
  def diverge(name):
    if name == WILD:
      raise Diverged("the loss is nan")
    return {}

  quick.then = diverge
  rows, _ = ablate.run(config, [WILD, "seed=1"], console)
  diverged = {"diverged": True, "environment": environment()}
  assert rows[1] == {"change": WILD} | diverged
  assert rows[2]["stateful"] > 0
  printed = console.file.getvalue()
  assert "\nthe loss is nan\n" in printed
  assert re.search(r" diverged +$", printed, re.MULTILINE)
  assert ablate.run(config, [WILD], console).rows == rows
  # If the recipe itself diverges, nothing can be compared with it.
  quick.then = lambda name: diverge(WILD)
  with pytest.raises(Diverged):
    ablate.run(replace(config, run=f"{config.job.run}2"), [], console)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (["seed=1,seed=2"], "each once, got 'seed' in 'seed=1,seed=2'"),
    (["depth=3"], "of training flags, each once, got 'depth' in 'depth=3'"),
    (["run=elsewhere"], "of training flags, each once, got 'run'"),
    ([""], "of training flags, each once, got ''"),
    (["num_layers=two"], "num_layers=two"),
    (["tied=maybe"], "tied=maybe"),
    (["weight_drop=1.5"], "weight_drop"),
    (["schedule=none"], "schedule"),
    (["learning_rate=0"], r"learning_rate must be in \(0, inf\), got 0"),
    (["tokenizer=word"], "must leave corpus, .* got 'tokenizer=word'"),
    (["seq_len=99999"], "the text is too short: 3 .* of 99999"),
    (["hidden_size=12"], "=hidden_size=12 is the same as base$"),
    (
      ["hidden_size=7", "num_layers=1,hidden_size=07"],
      "=num_layers=1,hidden_size=07 is the same as hidden_size=7$",
    ),
    (["init_from=nowhere"], "no run in nowhere"),
    (["teacher=nowhere"], "no run in nowhere"),
  ],
)
def test_a_bad_change_is_refused_before_training(
  changes, message, config, console
):
  with pytest.raises((ValueError, flags.Error), match=message):
    ablate.run(config, changes, console)
  assert not Path(config.job.run).exists()


def test_a_change_of_a_repeated_flag_is_one_value_or_none():
  changed = ablate.apply_change(TrainConfig(), "teacher=runs/a,seed=3")
  assert changed.distillation.teacher == ("runs/a",)
  none = ablate.apply_change(changed, "teacher=")
  assert none == replace(TrainConfig(), seed=3)


def test_the_directory_of_all_runs_is_given_and_is_not_that_of_one(
  finished, config, console
):
  with pytest.raises(ValueError, match="must be the directory of the runs"):
    ablate.run(replace(config, run=""), [], console)
  message = f"changes, got {exact(finished)}, which is a run$"
  with pytest.raises(ValueError, match=message):
    ablate.run(config, [], console)


def test_one_process_writes_the_results(config, console, quick):
  def run_again(name):
    with pytest.raises(ValueError, match="is in use by process"):
      ablate.run(config, [], console)
    return {}

  quick.then = run_again
  assert len(ablate.run(config, [], console).rows) == 1


def test_a_run_that_began_with_fewer_epochs_is_refused(config, console):
  """Extended, it would have other learning rates than the changes have."""
  base = Path(config.job.run) / "base"
  base.mkdir(parents=True)
  record = recorded_flags(config) | environment()
  (base / "config.json").write_text(json.dumps(record))  # unfinished
  with pytest.raises(ValueError, match="base holds a run that began with num_"):
    ablate.run(replace(config, num_epochs=2), [], console)


def test_the_results_of_another_recipe_or_corpus_are_not_mixed_in(
  config, console, monkeypatch
):
  write_rows(config, "base")
  other = replace(config, learning_rate=0.1)
  with pytest.raises(ValueError, match=r"learning_rate was 0\.02 and is 0\.1"):
    ablate.run(other, [], console)
  # The recipe is the same from another directory, and with a moved corpus.
  corpus = Path(config.data.corpus)
  monkeypatch.chdir(corpus.parent)
  moved = replace(config, corpus=f"{corpus.rename('moved.txt')}")
  ablate.run(moved, [], console)
  assert "ablations.json: 1\n" in console.file.getvalue()
  with open("moved.txt", "a", encoding="utf-8") as file:
    file.write("More.\n")
  with pytest.raises(ValueError, match=r"corpus was .* and is "):
    ablate.run(moved, [], console)
  with open(corpus, "w", encoding="utf-8") as file:
    file.write(VERSES[::-1])
  with pytest.raises(ValueError, match=r"of another corpus: .* has changed"):
    ablate.run(config, [], console)


def test_no_row_is_of_a_corpus_that_changes_meanwhile(config, console, quick):
  """Its text has the same characters, so that nothing else would notice."""

  def change(name):
    sha256 = text_sha256(VERSES[::-1])
    edit_config(Path(config.job.run) / name, corpus_sha256=sha256)
    return {}

  quick.then = change
  with pytest.raises(ValueError, match=r"base holds a .*: the corpus has"):
    ablate.run(config, [], console)
  assert not record_path(config).exists()


def test_no_row_is_of_other_weights_of_a_teacher(
  finished_config, config, console, quick
):
  """The teacher is trained again between two runs."""
  source = str(finished_config.job.run)
  hashes = {"base": "1a", "seed=1": "1a", "seed=2": "2b"}

  def read_weights(name):
    entries = {"teacher_sha256": [hashes[name]], "init_from_sha256": "3c"}
    edit_config(Path(config.job.run) / name, **entries)
    return {}

  quick.then = read_weights
  weights = {"teacher": (source,), "teacher_checkpoint": "last"}
  config = replace(config, init_from=source, **weights)
  with pytest.raises(ValueError, match=r"other weights of .* \(last\)"):
    ablate.run(config, ["seed=1", "seed=2"], console)
  record = read_record(config)
  assert [row["change"] for row in record["rows"]] == ["base", "seed=1"]
  assert record["models"] == {
    f"{source} (last)": "1a",
    f"{source} (best)": "3c",
  }


@pytest.mark.parametrize(
  "damage",
  ["{", {"rows": [{"change": "base"}]}],
)
def test_a_damaged_record_is_refused(damage, config, console):
  write_rows(config, "base")
  path = record_path(config)
  if isinstance(damage, dict):
    damage = json.dumps(read_record(config) | damage)
  path.write_text(damage)
  with pytest.raises(ValueError, match=f"{exact(path)} is damaged"):
    ablate.run(config, [], console)
  assert path.read_text() == damage


def test_overwrite_drops_no_change_that_it_does_not_name(config, console):
  write_rows(config, "base", "A=1", "B=2")
  before = record_path(config).read_bytes()
  with pytest.raises(ValueError, match=r"also holds A=1, B=2: name them with"):
    ablate.run(replace(config, overwrite=True), ["seed=1"], console)
  assert record_path(config).read_bytes() == before


def test_an_interrupted_overwrite_leaves_no_old_result(config, console, quick):
  changes = ["seed=1", "seed=2"]
  ablate.run(config, changes, console)
  quick.runs.clear()
  quick.then = lambda name: {"signalled": signal.SIGTERM}
  overwrite = replace(config, overwrite=True)
  rows, stopped_by = ablate.run(overwrite, changes, console)
  assert stopped_by == signal.SIGTERM
  assert [row["change"] for row in rows] == ["base"]
  quick.then = lambda name: {}
  ablate.run(config, changes, console)
  assert quick.runs == [(name, True) for name in ("base", *changes)]


def test_a_signal_ends_the_runs_and_the_next_call_resumes_them(config, console):
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)  # of 47 steps: between two evaluations
    result = ablate.run(config, [], console)
  assert result == ([], signal.SIGTERM)
  (row,), stopped_by = ablate.run(config, [], console)
  assert (row["change"], stopped_by) == ("base", None)
  assert "resumed     after step" in console.file.getvalue()


@pytest.mark.parametrize("moment", ["measurement", "end", "divergence"])
def test_a_signal_stops_the_runs_after_it_and_keeps_the_row(
  moment, config, console, quick, monkeypatch
):
  original = evaluate.run

  def run(options, console):
    if moment == "measurement" and "seed=1" in options.run[0]:
      signal.raise_signal(signal.SIGTERM)
    return original(options, console)

  def then(name):
    if moment == "measurement" or name == "base":
      return {}
    if moment == "end":
      return {"signalled": signal.SIGTERM}
    error = Diverged("the loss is nan")
    error.signalled = signal.SIGTERM
    raise error

  monkeypatch.setattr(evaluate, "run", run)
  quick.then = then
  rows, stopped_by = ablate.run(config, ["seed=1", "seed=2"], console)
  assert stopped_by == signal.SIGTERM
  assert [row["change"] for row in rows] == ["base", "seed=1"]
  assert rows == read_record(config)["rows"]
  # After the last run, there is nothing that a signal stops.
  assert ablate.run(config, ["seed=1"], console).stopped_by is None


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
