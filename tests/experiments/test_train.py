import json
import math
import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import train
from experiments.trainer import metric_buffer, setup
from experiments.trainer.config import CELLS
from experiments.trainer.data import read_corpus
from experiments.trainer.errors import Diverged
from experiments.trainer.opening import open_run_dir
from experiments.trainer.plot import draw
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import SHA256, check_is_run_or_empty
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax import lstm
from lstm_jax.language import WordTokenizer, stateful_loss
from tests.draws import worst
from tests.experiments.conftest import VERSE
from tests.experiments.sampled import write
from tests.experiments.trainer.resuming import inject_nans, read_rows

DIVERGES = {
  "optimizer": "sgd",
  "learning_rate": 1e38,
  "warmup_steps": 0,
  "clip_norm": 0.0,
}
SAMPLE = {
  "prompt": "Shall I",
  "length": 25,
  "temperature": 0.8,
  "top_k": 0,
  "top_p": 1.0,
  "num_samples": 1,
  "seed": 0,
}


@pytest.mark.parametrize(
  "cell",
  [
    pytest.param(
      cell,
      id=name,
      marks=[] if cell is lstm else pytest.mark.exhaustive,
    )
    for name, cell in CELLS.items()
  ],
)
def test_a_run_learns_and_fills_its_directory(cell, config, console, drawn):
  config = replace(config, cell=cell, num_epochs=3, learning_rate=0.03)
  result = train.run(config, console)
  directory = Path(config.job.run)
  assert result.directory == directory
  assert {path.name for path in directory.iterdir()} == {
    "config.json",
    "metrics.jsonl",
    "samples.txt",
    "loss.png",
    "checkpoints",
    "result.json",
    *(["tensorboard"] if find_spec("tensorboardX") else []),
  }
  record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
  assert to_record(config).items() <= record.items()
  losses = [r["train_loss"] for r in read_rows(directory) if "train_loss" in r]
  evaluations = [row for row in read_rows(directory) if "val_loss" in row]
  assert losses[-1] < losses[0] - 0.3
  best = min(evaluations, key=lambda row: row["val_loss"])
  assert (best["step"], best["val_loss"]) == (result.best_step, result.val_loss)
  assert (directory / "loss.png").read_bytes()[:4] == b"\x89PNG"
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  # One at each evaluation, and those of the untrained and the best weights.
  assert samples.count("===\n") == len(evaluations) + 2
  assert f"{result.val_loss:.4f}" in console.file.getvalue()


def test_the_metrics_have_the_learning_rate_of_each_row(finished_config):
  config = finished_config
  schedule = make_setup(config).schedule
  trained = [
    row for row in read_rows(Path(config.job.run)) if "train_loss" in row
  ]
  assert [row["step"] for row in trained] == [10, 20, 30, 40, 47]
  for row in trained:
    assert row["lr"] == float(schedule(row["step"] - 1))
    assert set(row) == {
      "step",
      "train_loss",
      "grad_norm",
      "lr",
      "tokens_per_second",
      "seconds",
    }
  assert trained[0]["lr"] > trained[1]["lr"] > trained[-1]["lr"] > 0


def test_the_checkpoint_has_the_validation_loss_that_the_run_reports(
  finished_config,
):
  directory = Path(finished_config.job.run)
  trained = load(directory)
  result = json.loads((directory / "result.json").read_text())
  val = read_corpus(finished_config.data).val
  again = stateful_loss(trained.model, trained.params, val.tokens)
  assert abs(again - result["val_loss"]) < 1e-6
  assert trained.val_loss == result["val_loss"]


def test_a_run_is_loaded_with_its_config(finished_config):
  trained = load(Path(finished_config.job.run))
  assert trained.config == finished_config
  corpus = read_corpus(finished_config.data)
  assert trained.corpus_sha256 == corpus.sha256
  assert trained.tokenizer == corpus.tokenizer


def test_the_seconds_are_those_of_training_steps_and_not_of_evaluations(
  config, console, monkeypatch
):
  evaluate, waited = train.stateful_loss, []

  def slow(*arguments):
    waited.append(1000.0)
    return evaluate(*arguments)

  clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(waited))
  monkeypatch.setattr(metric_buffer, "time", clock)
  monkeypatch.setattr(train, "stateful_loss", slow)
  # Evaluations right after a row, and after steps that have no row yet.
  result = train.run(replace(config, eval_every=15), console)
  assert len(waited) == 5  # after 10, 15, 30, 45 and 47
  assert result.seconds < 1000


def test_the_same_seed_gives_the_same_run(finished_config, config, console):
  first = load(Path(finished_config.job.run))
  second = train.run(config, console)
  assert first.val_loss == second.val_loss
  texts = [
    (Path(one.job.run) / "samples.txt").read_text()
    for one in (finished_config, config)
  ]
  assert texts[0] == texts[1]
  third = train.run(replace(config, seed=1, overwrite=True), console)
  assert third.val_loss != first.val_loss


def test_sample_continues_from_a_run(finished_config):
  directory = finished_config.job.run
  (text,) = write(directory, **SAMPLE)
  assert len(text) == len("Shall I") + 25
  assert text.startswith("Shall I")
  assert set(text) <= set(VERSE)
  several = write(directory, **SAMPLE | {"num_samples": 3})
  assert len(set(several)) == 3
  greedy = write(directory, **SAMPLE | {"temperature": 0.0, "num_samples": 2})
  assert greedy[0] == greedy[1]
  with pytest.raises(ValueError, match="character 'é' at position 2 is not in"):
    write(directory, **SAMPLE | {"prompt": "Thé"})
  with pytest.raises(ValueError, match="the prompt must have at least one"):
    write(directory, **SAMPLE | {"prompt": ""})


def test_a_run_of_words_learns_and_writes_verse(word_config, console):
  config = replace(word_config, num_epochs=5)
  result = train.run(config, console)
  directory = result.directory
  record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
  assert (record["tokenizer"], record["min_count"]) == ("word", 2)
  losses = [r["train_loss"] for r in read_rows(directory) if "train_loss" in r]
  assert losses[-1] < losses[0] - 0.3
  assert read_rows(directory)[0]["tokens_per_second"] > 0

  corpus, trained = read_corpus(config.data), load(directory)
  assert trained.tokenizer == WordTokenizer.from_text(corpus.train.text, 2)
  assert isinstance(trained.tokenizer, WordTokenizer)
  with pytest.raises(ValueError, match=r"'temperate', 'winds'$"):
    trained.tokenizer.encode_known("thee temperate\nwinds")
  tokens = trained.tokenizer.encode(corpus.val.text)
  again = stateful_loss(trained.model, trained.params, tokens)
  assert abs(again - result.val_loss) < 1e-6

  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  assert "<unk>" not in samples and "[" not in samples
  shown = console.file.getvalue()
  assert f"perplexity {math.exp(result.val_loss):,.1f} per word" in shown
  assert f"{result.val_loss:.4f} nats per word" in shown
  assert "nats per character with unknown words spelled out (" in shown
  assert "'--prompt=Shall I'" in shown

  options = SAMPLE | {"prompt": "Shall I ", "num_samples": 3}
  for text in write(str(directory), **options):
    assert text.startswith("Shall I") and not text.startswith("Shall I  ")
    assert len(trained.tokenizer.encode_known(text)) <= 2 + 25
  with pytest.raises(ValueError, match=r"15 words: 'Shalt', 'temperate'$"):
    write(str(directory), **SAMPLE | {"prompt": "Shalt thee temperate"})
  with pytest.raises(ValueError, match="prompt must have at least one word"):
    write(str(directory), **SAMPLE | {"prompt": " "})


@pytest.mark.parametrize(
  ("changes", "text", "message"),
  [
    ({}, "Thou art. " * 4, "need at least 25 tokens, got"),
    ({}, "thou " * 99, "only one word to learn, 'thou'"),
    ({"tokenizer": "character"}, "a" * 99, "only one character to learn, 'a'"),
    (
      {},
      "a b " * 40 + "c" * 20,
      "validation split must have at least 2 tokens, got 1",
    ),
    (
      {"val_fraction": 0.0},
      VERSE * 20,
      r"val_fraction must be in \(0, 1\), got 0",
    ),
    ({"min_count": 99}, VERSE * 20, "min_count of 99 leaves no word: the most"),
  ],
)
def test_words_that_cannot_be_learnt_are_an_error_that_names_the_reason(
  changes, text, message, word_config, console
):
  Path(word_config.data.corpus).write_text(text, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(replace(word_config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(word_config.job.run).exists()


@pytest.mark.exhaustive
def test_a_checkpoint_of_another_tokenizer_than_the_config_is_refused(
  finished, config, word_config, console
):
  words = replace(word_config, run=f"{config.job.run}-word")
  train.run(words, console)
  for directory, kind, other in (
    (finished, "character", "word"),
    (Path(words.job.run), "word", "character"),
  ):
    path = directory / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"tokenizer": other}))
    message = (
      f"tokenizer is '{kind}' in the checkpoint and '{other}' in config.json"
    )
    with pytest.raises(ValueError, match=message):
      load(directory)


def test_a_directory_of_other_files_is_refused_and_left_as_it_is(
  config, console
):
  directory = Path(config.job.run)
  directory.mkdir()
  for name in ("notes.md", "picture.png"):
    (directory / name).write_text("mine")
    more = " and 1 more" if name == "picture.png" else ""
    message = f"not a run and not empty: it holds notes.md{more}; choose "
    for overwrite in (False, True):
      with pytest.raises(ValueError, match=message):
        train.run(replace(config, overwrite=overwrite), console)
  names = {path.name for path in directory.iterdir()}
  assert names == {"notes.md", "picture.png"}
  for path in directory.iterdir():
    path.unlink()
  (directory / "lock").touch()  # of a run that was killed as it started
  (directory / "config.json.0a1b2c3d.part").touch()
  (directory / "config.json.0a1b2c3d.part").touch()
  train.run(config, console)


def test_a_directory_with_a_run_is_refused_and_left_as_it_is(
  finished, config, console
):
  before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
  message = "already holds a finished run; --overwrite"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)
  assert before == {p: p.read_bytes() for p in before}
  keep = finished / "notes.txt"
  keep.write_text("mine")
  train.run(replace(config, overwrite=True, seed=3), console)
  assert keep.read_text() == "mine"
  assert json.loads((finished / "config.json").read_text())["seed"] == 3


def test_a_run_is_replaced_only_by_one_that_has_reached_a_checkpoint(
  finished, config, console
):
  params = load(finished).params
  bad = replace(config, **DIVERGES, overwrite=True)
  for _ in range(2):  # a second failure does not push out what is kept
    with pytest.raises(Diverged, match="no checkpoint is kept"):
      train.run(bad, console)
    kept = load(finished / "previous").params
    assert worst(kept, params) == 0
  train.run(replace(config, overwrite=True, seed=5), console)
  assert not (finished / "previous").exists()
  assert worst(load(finished).params, params) > 0


def test_files_of_another_kind_are_left_as_they_are(config, console):
  directory = Path(config.job.run)
  directory.mkdir()
  (directory / "config.json").write_text('{"name": "somebody else"}')
  for overwrite in (False, True):
    with pytest.raises(
      ValueError, match=r"holds config.json but no config.json of a run"
    ):
      train.run(replace(config, overwrite=overwrite), console)
  assert [path.name for path in directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  ("changes", "text", "message"),
  [
    ({}, None, "cannot be read: no such file"),
    ({}, "", "is empty"),
    ({}, "short", "too short"),
    ({}, VERSE, "need at least 25 tokens, got"),
    ({"batch_size": 500}, VERSE * 20, "500 .* of 8 .* need at least 4001"),
    (
      {"batch_size": 500},
      VERSE * 20,
      "^--batch_size=500, --seq_len=8 and --val_fraction=0.1 do not fit /",
    ),
    (
      {"batch_size": 500, "dev_fraction": 0.2, "test_fraction": 0.1},
      f"{VERSE}\n\n" * 20,
      "^--batch_size=500, --seq_len=8, --dev_fraction=0.2, "
      "--test_fraction=0.1 and --val_fraction=0.1 do not fit /",
    ),
    (
      {"val_fraction": 0.0},
      VERSE * 20,
      r"val_fraction must be in \(0, 1\), got 0",
    ),
    (
      {"val_fraction": 1.0},
      VERSE * 20,
      r"val_fraction must be in \(0, 1\), got 1",
    ),
    ({"learning_rate": 0.0}, VERSE * 20, "learning_rate must be in"),
    (
      {"temperature": 1e300},
      VERSE * 20,
      r"temperature must be in \[0, 8.5e\+37\], got 1e\+300",
    ),
  ],
)
def test_bad_input_is_an_error_that_leaves_no_directory(
  changes, text, message, config, console
):
  if text is None:
    Path(config.data.corpus).unlink()
  else:
    cut = 20 if text == VERSE else None
    Path(config.data.corpus).write_text(text[:cut], encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(replace(config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(config.job.run).exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_epochs": 0}, r"num_epochs must be in \[1, inf\), got 0"),
    ({"temperature": math.inf}, r"temperature must be in \[0, inf\), got inf"),
    ({"tokenizer": "syllable"}, "tokenizer must be one of .*, got 'syllable'"),
    ({"min_count": 0}, r"min_count must be in \[1, inf\), got 0"),
    (
      {"ema_decay": 0.9, "asgd_patience": 3},
      "exclude each other: one must be 0, got 0.9 and 3$",
    ),
  ],
)
def test_a_configuration_out_of_range_is_refused(changes, message, config):
  with pytest.raises(ValueError, match=message):
    replace(config, **changes)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(
  config, console, monkeypatch
):
  def make(*arguments, **options):
    train_step = make_train_step(*arguments, **options)

    def poisoned(state, *batch):
      state, metrics = train_step(state, *batch)
      wrong = np.where(state.step == 27, np.nan, metrics.loss)
      return state, metrics._replace(loss=wrong)

    return poisoned

  make_train_step = setup.make_train_step
  monkeypatch.setattr(setup, "make_train_step", make)
  message = "the loss is nan at step 27; the checkpoint of step 20 is kept"
  with pytest.raises(Diverged, match=message):
    train.run(config, console)
  directory = Path(config.job.run)
  assert load(directory).step == 20
  losses = [r["train_loss"] for r in read_rows(directory) if "train_loss" in r]
  assert len(losses) == 2 and all(map(math.isfinite, losses))


@pytest.mark.exhaustive
def test_steps_that_are_not_finite_are_skipped_and_counted(
  config, console, monkeypatch
):
  inject_nans(monkeypatch, {7, 25, 26})
  with pytest.raises(Diverged, match="the loss is nan at step 7; no checkpo"):
    train.run(config, console)
  skip = replace(config, nonfinite="skip", overwrite=True)
  result = train.run(skip, console)
  assert "3 steps with a non-finite gradient skipped" in console.file.getvalue()
  trained = [row for row in read_rows(result.directory) if "train_loss" in row]
  assert [row.get("skipped", 0) for row in trained] == [1, 1, 3, 3, 3]
  assert all(math.isfinite(row["train_loss"]) for row in trained)


def test_half_a_row_is_not_drawn_and_hides_no_other_error(tmp_path):
  rows = '{"step": 10, "train_loss": 3.5}\n{"step": 20, "tr'
  (tmp_path / "metrics.jsonl").write_text(rows)
  draw(tmp_path, "character")
  assert (tmp_path / "loss.png").stat().st_size > 1000


@pytest.mark.exhaustive
def test_skipping_ends_where_too_many_in_a_row_are_not_finite(
  config, console, monkeypatch
):
  inject_nans(monkeypatch, range(31, 60))
  config = replace(config, nonfinite="skip", num_epochs=2)
  message = (
    "the loss is nan at step 41, and at most 10 in a row may be skipped; the "
    "checkpoint"
  )
  with pytest.raises(Diverged, match=message):
    train.run(config, console)
  assert read_rows(Path(config.job.run))[-2]["train_loss"] is None


def test_a_run_that_diverges_at_once_keeps_no_checkpoint(config, console):
  config = replace(config, **DIVERGES)
  with pytest.raises(Diverged, match=r"at step \d+; no checkpoint is kept"):
    train.run(config, console)
  with pytest.raises(ValueError, match="holds no checkpoint"):
    load(Path(config.job.run))


def test_a_directory_without_a_run_or_with_another_one_is_refused(
  finished, tmp_path
):
  with pytest.raises(
    ValueError, match=r"there is no run in .*: no such directory"
  ):
    load(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=r"no config.json of a run"):
    load(tmp_path)
  path = finished / "config.json"
  good = path.read_text()
  path.write_text(json.dumps(json.loads(good) | {"hidden_size": 13}))
  message = (
    "another configuration than .*: hidden_size is 12 in the checkpoint and 13 "
    "in config.json$"
  )
  with pytest.raises(ValueError, match=message):
    load(finished)
  path.write_text("{")
  with pytest.raises(ValueError, match=r"no config.json of a run"):
    load(finished)
  path.write_text(good)
  shutil.rmtree(finished / "checkpoints")
  with pytest.raises(ValueError, match="holds no checkpoint"):
    load(finished)


def test_a_damaged_config_is_an_error_of_one_line(finished, config):
  path = finished / "config.json"
  good = json.loads(path.read_text())
  path.write_text("[" * 200_000)
  with pytest.raises(
    ValueError, match=r"there is no run in .*: no config\.json"
  ):
    load(finished)
  with pytest.raises(
    ValueError, match=r"holds config\.json but no config\.json"
  ):
    check_is_run_or_empty(finished)
  path.write_text(json.dumps(good | {"num_epochs": "1"}))
  facts = {SHA256: good[SHA256]}
  message = r"config.json is damaged: num_epochs must be int, got '1'; --over"
  with (
    pytest.raises(ValueError, match=message),
    open_run_dir(config, facts, may_extend=True),
  ):
    pass


def test_a_run_directory_has_a_name_in_utf_8(config, tmp_path):
  run = os.fsdecode(bytes(tmp_path / "run") + b"\xff")
  message = r"^the path of a run directory must be UTF-8, got '.*run\\udcff'$"
  with (
    pytest.raises(ValueError, match=message),
    open_run_dir(replace(config, run=run), {}),
  ):
    pass
  assert not os.path.exists(run)


@pytest.mark.parametrize("text", [VERSE])
def test_the_gradient_of_the_whole_model_passes(text, key):
  from experiments.gradcheck import check_model

  assert check_model(lstm, text, key).passes()
