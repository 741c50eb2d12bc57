import dataclasses
import json
import math
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from experiments import train
from experiments.cli import Diverged
from experiments.gradcheck import check_model
from experiments.sample import run as write
from experiments.trainer import run_dir, setup, tally
from experiments.trainer.flags import define_flags
from experiments.trainer.plot import draw
from lstm_jax import lstm
from lstm_jax.language import (
  WordTokenizer,
  read_text,
  split,
  stateful_loss,
  words,
)
from tests.draws import worst
from tests.experiments.conftest import VERSE
from tests.experiments.trainer.lives import poison

SAMPLE = {
  "prompt": "Shall I",
  "length": 25,
  "temperature": 0.8,
  "top_k": 0,
  "top_p": 1.0,
  "num_samples": 1,
  "seed": 0,
}


def rows(directory):
  text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_run_learns_and_fills_its_folder(cell, config, console):
  config = dataclasses.replace(
    config, cell=cell, num_epochs=3, learning_rate=0.03
  )
  result = train.run(config, console)
  directory = Path(config.run)
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
  assert dataclasses.asdict(config).items() <= record.items()
  losses = [row["loss"] for row in rows(directory) if "loss" in row]
  held_out = [row for row in rows(directory) if "held_out" in row]
  assert losses[-1] < losses[0] - 0.3
  best = min(held_out, key=lambda row: row["held_out"])
  assert (best["step"], best["held_out"]) == (
    result.best_update,
    result.held_out,
  )
  assert (directory / "loss.png").read_bytes()[:4] == b"\x89PNG"
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  assert samples.count("===\n") == len(held_out) + 2  # untrained, and the best
  assert f"{result.held_out:.4f}" in console.file.getvalue()


def test_the_checkpoint_has_the_held_out_loss_that_the_run_reports(
  config, console
):
  result = train.run(config, console)
  trained = run_dir.load(result.directory)
  tokens = trained.vocabulary.encode(read_text(config.corpus))
  _, held_out = split(tokens, config.val_fraction)
  again = stateful_loss(trained.model, trained.params, held_out)
  assert abs(again - result.held_out) < 1e-6
  assert trained.held_out == result.held_out


def test_the_seconds_are_those_of_updates_and_not_of_looks(
  config, console, monkeypatch
):
  look, waited = train.stateful_loss, []

  def slow(*arguments):
    waited.append(1000.0)
    return look(*arguments)

  clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(waited))
  monkeypatch.setattr(tally, "time", clock)
  monkeypatch.setattr(train, "stateful_loss", slow)
  # Looks right after a row, and after updates that have none yet.
  result = train.run(dataclasses.replace(config, eval_every=15), console)
  assert len(waited) == 5  # after 10, 15, 30, 45 and 47
  assert result.seconds < 1000


def test_the_same_seed_gives_the_same_run(config, console):
  first = train.run(config, console)
  other = dataclasses.replace(config, run=config.run + "2")
  second = train.run(other, console)
  assert first.held_out == second.held_out
  texts = [(r.directory / "samples.txt").read_text() for r in (first, second)]
  assert texts[0] == texts[1]
  third = train.run(
    dataclasses.replace(config, seed=1, overwrite=True), console
  )
  assert third.held_out != first.held_out


def test_sample_continues_from_a_run(config, console):
  directory = train.run(config, console).directory
  (text,) = write(str(directory), **SAMPLE)
  assert len(text) == len("Shall I") + 25
  assert text.startswith("Shall I")
  assert set(text) <= set(VERSE)
  several = write(str(directory), **SAMPLE | {"num_samples": 3})
  assert len(set(several)) == 3
  greedy = write(
    str(directory), **SAMPLE | {"temperature": 0.0, "num_samples": 2}
  )
  assert greedy[0] == greedy[1]
  with pytest.raises(ValueError, match="character 'é' at position 2 is not in"):
    write(str(directory), **SAMPLE | {"prompt": "Thé"})
  with pytest.raises(ValueError, match="the prompt must have at least one"):
    write(str(directory), **SAMPLE | {"prompt": ""})


def test_a_run_of_words_learns_and_writes_verse(word_config, console):
  config = dataclasses.replace(word_config, num_epochs=5)
  result = train.run(config, console)
  directory = result.directory
  record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
  assert (record["tokenizer"], record["min_count"]) == ("word", 2)
  losses = [row["loss"] for row in rows(directory) if "loss" in row]
  assert losses[-1] < losses[0] - 0.3
  assert all(row["words_per_second"] > 0 for row in rows(directory)[:1])

  training, held_out = split(read_text(config.corpus), config.val_fraction)
  trained = run_dir.load(directory)
  assert trained.vocabulary == words(training, 2)
  assert isinstance(trained.vocabulary, WordTokenizer)
  with pytest.raises(ValueError, match=r"'temperate', 'winds'$"):
    trained.vocabulary.encode_known("thee temperate\nwinds")
  tokens = trained.vocabulary.encode(held_out)
  again = stateful_loss(trained.model, trained.params, tokens)
  assert abs(again - result.held_out) < 1e-6

  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  assert "<unk>" not in samples and "[" not in samples
  shown = console.file.getvalue()
  assert f"perplexity {math.exp(result.held_out):,.1f} per word" in shown
  assert f"{result.held_out:.4f} nats per word" in shown
  assert "nats per character with unknown words spelt (" in shown
  assert '--prompt="Shall I"' in shown

  options = SAMPLE | {"prompt": "Shall I ", "num_samples": 3}
  for text in write(str(directory), **options):
    assert text.startswith("Shall I") and not text.startswith("Shall I  ")
    assert len(trained.vocabulary.encode_known(text)) <= 2 + 25
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
    ({}, "a b " * 40 + "c" * 20, "too short: what is held out has 1 tokens"),
    (
      {"val_fraction": 0.0},
      VERSE * 20,
      r"held-out share must be in \(0, 1\), got 0",
    ),
    ({"min_count": 99}, VERSE * 20, "min_count of 99 leaves no word: the most"),
  ],
)
def test_words_that_cannot_be_learnt_are_an_error_that_says_why(
  changes, text, message, word_config, console
):
  Path(word_config.corpus).write_text(text, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(dataclasses.replace(word_config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(word_config.run).exists()


def test_a_checkpoint_of_other_tokens_than_the_configuration_is_refused(
  config, word_config, console
):
  for made, other in ((config, "word"), (word_config, "character")):
    made = dataclasses.replace(made, run=f"{config.run}-{made.tokenizer}")
    path = train.run(made, console).directory / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"tokenizer": other}))
    message = f"tokenizer is '{made.tokenizer}' in one and '{other}' in the other"
    with pytest.raises(ValueError, match=message):
      run_dir.load(path.parent)


def test_a_run_from_before_there_were_words_is_one_of_characters(
  config, console, monkeypatch
):
  def describe(config, vocabulary):
    fields = {name: getattr(config, name) for name in run_dir.MODEL_FIELDS}
    fields = {k: v for k, v in fields.items() if k not in later}
    return {"model": fields, "vocabulary": vocabulary.symbols}

  later = run_dir.EARLIER
  monkeypatch.setattr(run_dir, "describe", describe)
  directory = train.run(config, console).directory
  path = directory / "config.json"
  record = json.loads(path.read_text())
  path.write_text(json.dumps({k: record[k] for k in record.keys() - later}))
  assert run_dir.load(directory).vocabulary.symbols == "".join(
    sorted(set(VERSE))
  )
  train.run(dataclasses.replace(config, overwrite=True), console)


def test_a_folder_with_a_run_is_refused_and_left_alone(config, console):
  directory = train.run(config, console).directory
  before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
  with pytest.raises(ValueError, match="already holds a run; --overwrite"):
    train.run(config, console)
  assert before == {p: p.read_bytes() for p in before}
  keep = directory / "notes.txt"
  keep.write_text("mine")
  train.run(dataclasses.replace(config, overwrite=True, seed=3), console)
  assert keep.read_text() == "mine"
  assert json.loads((directory / "config.json").read_text())["seed"] == 3


def test_a_run_is_replaced_only_by_one_that_reached_a_checkpoint(
  config, console
):
  directory = train.run(config, console).directory
  params = run_dir.load(directory).params
  bad = dataclasses.replace(
    config,
    overwrite=True,
    optimizer="sgd",
    learning_rate=1e38,
    warmup_steps=0,
    clip_norm=0.0,
  )
  for _ in range(2):  # a second failure does not push out what is kept
    with pytest.raises(Diverged, match="no checkpoint is kept"):
      train.run(bad, console)
    kept = run_dir.load(directory / "previous").params
    assert worst(kept, params) == 0
  train.run(dataclasses.replace(config, overwrite=True, seed=5), console)
  assert not (directory / "previous").exists()
  assert worst(run_dir.load(directory).params, params) > 0


def test_files_that_are_not_of_a_run_are_left_alone(config, console):
  directory = Path(config.run)
  directory.mkdir()
  (directory / "config.json").write_text('{"name": "somebody else"}')
  for overwrite in (False, True):
    with pytest.raises(ValueError, match=r"config.json, which is not of a run"):
      train.run(dataclasses.replace(config, overwrite=overwrite), console)
  assert [path.name for path in directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  ("changes", "text", "message"),
  [
    ({}, None, "cannot be read: no such file"),
    ({}, "", "is empty"),
    ({}, "short", "too short"),
    ({}, VERSE, "need at least 25 tokens, got"),
    ({"batch_size": 500}, VERSE * 20, "500 streams of 8 steps need at least"),
    (
      {"val_fraction": 0.0},
      VERSE * 20,
      r"held-out share must be in \(0, 1\), got 0",
    ),
    (
      {"val_fraction": 1.0},
      VERSE * 20,
      r"held-out share must be in \(0, 1\), got 1",
    ),
    ({"learning_rate": 0.0}, VERSE * 20, "learning_rate must be positive"),
  ],
)
def test_bad_input_is_an_error_that_leaves_no_folder(
  changes, text, message, config, console
):
  if text is None:
    Path(config.corpus).unlink()
  else:
    cut = 20 if text == VERSE else None
    Path(config.corpus).write_text(text[:cut], encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(dataclasses.replace(config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(config.run).exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_epochs": 0}, "num_epochs must be ≥ 1, got 0"),
    ({"temperature": math.inf}, "temperature must be ≥ 0, got inf"),
    ({"cell": "gpt"}, "cell must be in .*, got 'gpt'"),
    ({"tokenizer": "syllable"}, "tokenizer must be in .*, got 'syllable'"),
    ({"min_count": 0}, "min_count must be ≥ 1, got 0"),
  ],
)
def test_a_configuration_out_of_range_is_refused(changes, message, config):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **changes)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(
  config, console, monkeypatch
):
  def make_train_step(*args, **options):
    update = train_make_train_step(*args, **options)

    def poisoned(state, *block):
      state, metrics = update(state, *block)
      wrong = np.where(state.step == 27, np.nan, metrics.loss)
      return state, metrics._replace(loss=wrong)

    return poisoned

  train_make_train_step = setup.make_train_step
  monkeypatch.setattr(setup, "make_train_step", make_train_step)
  message = "the loss is nan at update 27; the checkpoint of update 20 is kept"
  with pytest.raises(Diverged, match=message):
    train.run(config, console)
  assert run_dir.load(Path(config.run)).step == 20
  assert all(math.isfinite(row["loss"]) for row in rows(Path(config.run))[::2])


def test_updates_that_are_not_finite_are_skipped_and_counted(
  config, console, monkeypatch
):
  poison(monkeypatch, {7, 25, 26})
  with pytest.raises(Diverged, match="the loss is nan at update 7; no checkp"):
    train.run(config, console)
  skip = dataclasses.replace(config, nonfinite="skip", overwrite=True)
  result = train.run(skip, console)
  assert "3 updates skipped as not finite" in console.file.getvalue()
  found = {row["step"]: row for row in rows(result.directory) if "loss" in row}
  assert [row.get("skipped", 0) for row in found.values()] == [1, 1, 3, 3, 3]
  assert all(math.isfinite(row["loss"]) for row in found.values())


def test_half_a_row_is_not_drawn_and_hides_no_other_error(tmp_path):
  rows = '{"step": 10, "loss": 3.5}\n{"step": 20, "lo'
  (tmp_path / "metrics.jsonl").write_text(rows)
  draw(tmp_path, "character")
  assert (tmp_path / "loss.png").stat().st_size > 1000


def test_skipping_ends_where_too_many_in_a_row_are_not_finite(
  config, console, monkeypatch
):
  poison(monkeypatch, range(31, 60))
  config = dataclasses.replace(config, nonfinite="skip", num_epochs=2)
  message = "the loss is nan at update 41, as in 10 before it; the checkpoint"
  with pytest.raises(Diverged, match=message):
    train.run(config, console)
  assert rows(Path(config.run))[-2]["loss"] is None


def test_a_run_that_diverges_at_once_says_that_nothing_is_kept(config, console):
  config = dataclasses.replace(
    config, optimizer="sgd", learning_rate=1e38, warmup_steps=0, clip_norm=0.0
  )
  with pytest.raises(Diverged, match=r"at update \d+; no checkpoint is kept"):
    train.run(config, console)
  with pytest.raises(ValueError, match="holds no checkpoint"):
    run_dir.load(Path(config.run))


def test_a_folder_that_is_no_run_or_of_another_one_is_refused(
  config, console, tmp_path
):
  with pytest.raises(
    ValueError, match=r"there is no run in .*: no such folder"
  ):
    run_dir.load(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="holds no checkpoint"):
    run_dir.load(tmp_path)
  directory = train.run(config, console).directory
  path = directory / "config.json"
  record = json.loads(path.read_text())
  path.write_text(json.dumps(record | {"hidden_size": 13}))
  message = "another configuration than .*: hidden_size is 12 in one and 13 in"
  with pytest.raises(ValueError, match=message):
    run_dir.load(directory)
  path.write_text("{")
  with pytest.raises(ValueError, match=r"config.json cannot be read"):
    run_dir.load(directory)


@pytest.mark.parametrize("text", [VERSE])
def test_the_gradient_of_the_whole_model_passes(text, key):
  assert check_model(lstm, text, key).passes()


def test_the_default_is_that_of_the_flags():
  """One place holds the defaults: every flag's is that of TrainConfig."""
  before = set(flags.FLAGS)
  found = {flag.name: flag.default for flag in define_flags()}
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)
  assert found == dataclasses.asdict(train.TrainConfig())
