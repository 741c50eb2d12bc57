"""What an ablation trains, measures and prints, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import ablate, train
from experiments.comparison.changes import apply_change
from experiments.trainer.data import read_corpus
from experiments.trainer.environment import environment
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from experiments.trainer.run_dir import recorded_flags
from experiments.trainer.trained import Trained, load
from lstm_jax.language.evaluate import stateful_loss
from tests.experiments.ablating import ROW, read_record, write_rows
from tests.experiments.conftest import VERSE, VERSES, copy_run
from tests.patterns import exact


@pytest.mark.exhaustive
def test_each_change_is_trained_once_and_measured(config, console):
  changes = ["hidden_size=7", "output_dropout=0.5,num_epochs=2"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert [row["change"] for row in rows] == ["base", *changes]
  assert stopped_by is None
  for row in rows:
    trained = load(Path(config.job.run) / row["change"])
    val = read_corpus(config.data).val
    nats = stateful_loss(trained.model, trained.params, val.tokens)
    assert abs(row["stateful"] - nats) < 1e-6
    assert row["cold"] > 0 and row["seconds"] > 0
  assert rows[1]["parameters"] < rows[0]["parameters"] == rows[2]["parameters"]
  record = read_record(config)
  assert record["rows"] == rows
  assert record["recipe"]["hidden_size"] == config.model.hidden_size
  assert {"versions", "device"} <= {*record["rows"][0]["environment"]}

  printed = console.file.getvalue()
  difference = rows[1]["stateful"] - rows[0]["stateful"]
  assert re.search(
    rf"hidden_size=7 .* {re.escape(f'{difference:+.4f}')}", printed
  )
  again = ablate.run(config, [*changes, "seed=1"], console).rows
  assert again[:3] == rows and again[3]["change"] == "seed=1"
  # A run that is trained prints this heading: three at first, then one more.
  assert console.file.getvalue().count("\nrun         ") == 4


@pytest.mark.exhaustive
def test_the_test_split_plays_no_part(config, console):
  config = replace(config, test_fraction=0.2)
  (row,), _ = ablate.run(config, [], console)
  trained = load(Path(config.job.run) / "base")
  val = read_corpus(config.data).val
  nats = stateful_loss(trained.model, trained.params, val.tokens)
  assert abs(row["stateful"] - nats) < 1e-6
  printed = console.file.getvalue()
  assert "cold, stateful: nats per token of the validation split\n" in printed


def test_a_run_is_measured_by_both_protocols_on_the_validation_split(
  config, monkeypatch
):
  """Stand-ins return the losses of two tokens; a row has their mean."""
  val = read_corpus(config.data).val
  params = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
  trained = Trained(
    config, None, params, None, step=40, val_loss=1.75, corpus_sha256="1a2b"
  )

  def nats(value):
    def of_tokens(model, weights, tokens):
      assert weights is params and tokens.tolist() == val.tokens.tolist()
      return np.array([value, value + 2])

    return of_tokens

  monkeypatch.setattr(ablate, "load", lambda directory: trained)
  # It returns its argument `data`, as if the corpus had not moved.
  monkeypatch.setattr(ablate, "find_corpus", lambda *args: args[1])
  monkeypatch.setattr(ablate, "cold_nats", nats(2.0))
  monkeypatch.setattr(ablate, "stateful_nats", nats(1.0))
  monkeypatch.setattr(ablate.run_dir, "read_record", lambda directory: {})
  monkeypatch.setattr(ablate, "environment_of", lambda record: record)
  result = train.Result(
    Path(config.job.run), best_step=47, val_loss=9.0, seconds=12.34567
  )
  sha256 = read_corpus(config.data).sha256
  assert ablate._measure(result, config.data, sha256) == {
    "parameters": 9,
    "cold": 3.0,
    "stateful": 2.0,
    "val_loss": 1.75,
    "step": 40,
    "seconds": 12.346,
    "environment": {},
  }


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
  monkeypatch.setattr(train, "run", run)
  with pytest.raises(KeyboardInterrupt):
    ablate.run(config, ["hidden_size=7"], console)
  base = f"{config.job.run}/base"
  assert shared == [base, f"{config.job.run}/hidden_size=7"]
  assert trained == [(base, "3")]


@pytest.mark.exhaustive
def test_a_change_that_diverges_is_marked_and_the_others_are_trained(
  config, console
):
  wild = "optimizer=sgd,learning_rate=1e38,warmup_steps=0,clip_norm=0"
  rows, _ = ablate.run(config, [wild, "hidden_size=7"], console)
  assert rows[1] == {
    "change": wild,
    "diverged": True,
    "environment": environment(),
  }
  assert rows[2]["stateful"] > 0
  printed = console.file.getvalue()
  assert "no checkpoint is kept" in printed
  assert re.search(r" diverged +$", printed, re.MULTILINE)
  assert ablate.run(config, [wild], console).rows == rows
  # If the recipe itself diverges, nothing can be compared with it.
  with pytest.raises(Diverged, match="no checkpoint is kept"):
    ablate.run(
      replace(apply_change(config, wild), run=f"{config.job.run}2"),
      [],
      console,
    )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("seed=1,seed=2", "each once, got 'seed' in 'seed=1,seed=2'"),
    ("depth=3", "of training flags, each once, got 'depth' in 'depth=3'"),
    ("run=elsewhere", "of training flags, each once, got 'run'"),
    ("", "of training flags, each once, got ''"),
    ("num_layers=two", "num_layers must be of kind int, got 'two'"),
    ("tied=yes", "tied must be true or false, got 'yes'"),
    ("weight_drop=1.5", r"weight_drop must be in \[0, 1\), got 1.5"),
    ("schedule=none", "schedule must be one of .* got 'none'"),
    ("learning_rate=0", r"learning_rate must be in \(0, inf\), got 0"),
    (
      "tokenizer=word",
      "must leave corpus, .* do not compare, got 'tokenizer=word'",
    ),
    ("seq_len=99999", "the text is too short: 3 .* of 99999"),
    (
      f"learning_rate=0.1{'0' * 250}",
      "--change must have at most 255 bytes, .* directory, got 267: learning",
    ),
  ],
)
def test_a_bad_change_is_refused_before_training(
  change, message, config, console
):
  with pytest.raises(ValueError, match=message):
    ablate.run(config, [change], console)
  assert not Path(config.job.run).exists()


def test_the_directory_of_the_runs_must_be_given(config, console):
  with pytest.raises(ValueError, match="must be the directory of the runs"):
    ablate.run(replace(config, run=""), [], console)


def test_the_directory_of_one_run_is_refused_as_that_of_all_runs(
  finished, config, console
):
  before = {*finished.iterdir()}
  with pytest.raises(
    ValueError, match=f"changes, got {exact(finished)}, which is a run$"
  ):
    ablate.run(config, [], console)
  assert {*finished.iterdir()} == before


def test_models_that_do_not_exist_are_refused_before_training(config, console):
  for change in ("init_from=nowhere", "teacher=nowhere"):
    with pytest.raises(ValueError, match="nowhere"):
      ablate.run(config, [change], console)
  assert not Path(config.job.run).exists()


def test_a_recipe_is_the_same_from_another_directory(
  config, console, monkeypatch
):
  write_rows(config, "base")
  corpus = Path(config.data.corpus)
  monkeypatch.chdir(corpus.parent)
  ablate.run(replace(config, corpus=corpus.name), [], console)
  # One row is kept, and the recipe is not trained again.
  assert "ablations.json: 1\n" in console.file.getvalue()


def test_a_run_whose_corpus_was_moved_is_measured_on_the_text_given_now(
  finished_config, config, console, monkeypatch
):
  base = replace(config, run=f"{config.job.run}/base")
  copy_run(finished_config, base)
  corpus = Path(config.data.corpus)
  moved = corpus.parent / "elsewhere" / "other name.md"
  moved.parent.mkdir()
  corpus.rename(moved)
  for name in ("cold_nats", "stateful_nats"):
    monkeypatch.setattr(ablate, name, lambda model, params, tokens: tokens)
  (row,), _ = ablate.run(replace(config, corpus=str(moved)), [], console)
  tokens = read_corpus(replace(config, corpus=str(moved)).data).val.tokens
  assert row["cold"] == row["stateful"] == tokens.mean()


def test_no_row_is_of_a_corpus_that_changes_meanwhile(
  finished_config, config, console, monkeypatch
):
  """Its text has the same characters, so that nothing else would notice."""
  corpus, trained = Path(config.data.corpus), list[str]()

  def run(single, console):
    trained.append(single.job.run)
    corpus.write_text(VERSES[::-1], encoding="utf-8")
    return train.Result(copy_run(finished_config, single), 47, 1.5, 3.0)

  monkeypatch.setattr(train, "run", run)
  message = f"corpus {exact(corpus)} has changed since this program started"
  with pytest.raises(ValueError, match=message):
    ablate.run(config, [], console)
  # A change between two runs is noticed, too.
  corpus.write_text(VERSES, encoding="utf-8")
  monkeypatch.chdir(corpus.parent)
  monkeypatch.setattr(ablate, "_measure", lambda *given: ROW)
  with pytest.raises(ValueError, match=message):
    ablate.run(replace(config, run="again"), ["seed=1"], console)
  assert trained == [f"{config.job.run}/base", "again/base"]


def test_the_same_change_under_another_name_is_refused(config, console):
  same = ["hidden_size=7", "num_layers=1,hidden_size=07"]
  with pytest.raises(ValueError, match=f"={same[1]} is the same as {same[0]}$"):
    ablate.run(config, same, console)


def test_changes_that_would_share_a_directory_are_refused(config, console):
  changes = ["init_from=a/b", "init_from=a-b"]
  message = "init_from=a-b and init_from=a/b would share the directory .*=a-b$"
  with pytest.raises(ValueError, match=message):
    ablate.run(config, changes, console)
  assert not Path(config.job.run).exists()


def test_a_run_that_began_with_fewer_epochs_is_refused(config, console):
  """Extended, it would have other learning rates than the changes have."""
  base = Path(config.job.run) / "base"
  base.mkdir(parents=True)
  record = recorded_flags(config) | environment()
  (base / "config.json").write_text(json.dumps(record))  # unfinished
  with pytest.raises(ValueError, match="base holds a run that began with num_"):
    ablate.run(replace(config, num_epochs=2), [], console)
