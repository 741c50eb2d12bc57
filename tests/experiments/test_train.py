import json
import math
import re
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import train
from experiments.trainer import logger
from experiments.trainer.config import CELLS
from experiments.trainer.data import read_corpus
from experiments.trainer.records import replace, to_record
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax import lstm
from lstm_jax.language import WordTokenizer, stateful_loss
from lstm_jax.testing import terms
from tests.experiments.conftest import VERSE
from tests.experiments.sampled import sample_texts
from tests.experiments.trainer.resuming import read_rows

SAMPLE = {"prompt": "Shall I", "length": 25}


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
def test_a_run_learns_and_fills_its_directory(
  cell, config, console, monkeypatch
):
  config = replace(
    config, cell=cell, num_epochs=3, learning_rate=0.03, eval_every=100
  )
  # All samples are of one length, so that one compiled program draws them.
  length = config.evaluation.sample_length
  monkeypatch.setattr(logger, "FINAL_SAMPLE_LENGTH", length)
  result = train.run(config, console)
  directory = Path(config.job.run)
  assert result.directory == directory
  assert {path.name for path in directory.iterdir()} == {
    "config.json",
    "metrics.jsonl",
    "samples.txt",
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
  # Runs are also evaluated at steps 10 and 30, and at the end: 3 epochs of 47.
  assert [row["step"] for row in evaluations] == [10, 30, 100, 141]
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  # One at each evaluation, and those of the untrained and the best weights.
  assert samples.count("===\n") == len(evaluations) + 2
  assert f"{result.val_loss:.4f}" in console.file.getvalue()


def test_a_run_draws_its_losses(finished_config):
  path = Path(finished_config.job.run) / "loss.png"
  assert path.read_bytes()[:4] == b"\x89PNG"


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
  monkeypatch.setattr(logger, "time", clock)
  monkeypatch.setattr(train, "stateful_loss", slow)
  # Evaluations right after a row, and after steps that have no row yet.
  result = train.run(replace(config, eval_every=15), console)
  assert len(waited) == 5  # after 10, 15, 30, 45 and 47
  assert result.seconds < 1000


@pytest.mark.exhaustive
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
  (text,) = sample_texts(directory, **SAMPLE)
  assert len(text) == len("Shall I") + 25
  assert text.startswith("Shall I")
  assert set(text) <= set(VERSE)
  several = sample_texts(directory, **SAMPLE | {"num_samples": 3})
  assert len(set(several)) == 3
  greedy = sample_texts(
    directory, **SAMPLE | {"temperature": 0.0, "num_samples": 2}
  )
  assert greedy[0] == greedy[1]
  with pytest.raises(ValueError, match="character 'é' at position 2 is not in"):
    sample_texts(directory, **SAMPLE | {"prompt": "Thé"})
  with pytest.raises(ValueError, match=r"must have at least one character$"):
    sample_texts(directory, **SAMPLE | {"prompt": ""})


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
  unknown = np.isin(corpus.val.tokens, trained.tokenizer.unknown_tokens)
  assert unknown.any()
  assert (
    f", {trained.tokenizer.size - 1} words known, {len(unknown)} for "
    f"validation, {100 * unknown.mean():.1f}% of them unknown\n"
  ) in shown
  perplexity = f"perplexity {math.exp(result.val_loss):,.1f} per word"
  assert f": validation {perplexity}" in shown
  assert f"{result.val_loss:.4f} nats per word" in shown
  assert "nats per character with unknown words spelled out (" in shown
  assert "'--prompt=Shall I'" in shown

  options = SAMPLE | {"prompt": "Shall I ", "num_samples": 3}
  for text in sample_texts(str(directory), **options):
    assert text.startswith("Shall I") and not text.startswith("Shall I  ")
    assert len(trained.tokenizer.encode_known(text)) <= 2 + 25
  with pytest.raises(ValueError, match=r"15 words: 'Shalt', 'temperate'$"):
    sample_texts(str(directory), **SAMPLE | {"prompt": "Shalt thee temperate"})
  with pytest.raises(ValueError, match="prompt must have at least one word"):
    sample_texts(str(directory), **SAMPLE | {"prompt": " "})


@pytest.mark.parametrize("name", ["lstm", "layernorm_lstm", "linear"])
def test_an_unknown_term_is_an_error_that_lists_the_terms_of_its_cell(
  name, config, console
):
  """`linear` is no cell, and the error lists the cells."""
  from experiments import gradcheck

  with pytest.raises(ValueError, match="no backward pass has a term") as raised:
    gradcheck.run(config.data.corpus, f"{name}.dq", 0, console)
  message = str(raised.value)
  expected = {*terms(CELLS[name])} if name in CELLS else {*CELLS}
  assert expected <= {*re.split("[ ,;]+", message)}
  assert len(message) <= 500  # programs print no more of a message
