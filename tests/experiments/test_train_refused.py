"""What `experiments.train` refuses, and leaves as it is."""

import json
import math
import shutil
from pathlib import Path

import pytest

from experiments import train
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from tests.experiments.conftest import VERSE
from tests.power import tree


@pytest.mark.parametrize(
  ("changes", "text", "message"),
  [
    # 25 = 3 · 8 + 1: the first token is no target.
    ({}, "Thou art. " * 4, "need at least 25 tokens, got"),
    ({}, "thou " * 99, "only one word to learn, 'thou'"),
    ({"tokenizer": "character"}, "a" * 99, "only one character to learn, 'a'"),
    (
      {},
      "a b " * 40 + "c" * 20,
      "validation split must have at least 2 tokens, got 1",
    ),
    ({"min_count": 99}, VERSE * 20, "min_count of 99 leaves no word: the most"),
  ],
)
def test_a_text_that_cannot_be_learnt_is_an_error_that_names_the_reason(
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


def test_a_directory_with_a_run_is_refused_and_left_as_it_is(
  finished, config, console
):
  before = tree(finished)
  message = "already holds a finished run; --overwrite"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)
  assert tree(finished) == before
  # --overwrite replaces the run, and keeps a file that is not the run's.
  keep = finished / "notes.txt"
  keep.write_text("mine")
  train.run(replace(config, overwrite=True, seed=3), console)
  assert keep.read_text() == "mine"
  assert json.loads((finished / "config.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
  ("changes", "text", "message"),
  [
    ({}, None, "cannot be read: no such file"),
    ({}, "", "is empty"),
    ({}, "short", "^--val_fraction=0.1 does not fit .* too short: of 5 tokens"),
    (
      {"test_fraction": 0.999},
      VERSE * 20,
      f"--test_fraction=0.999 .* too short: of {20 * len(VERSE)} tokens",
    ),
    ({}, VERSE[:20], "need at least 25 tokens, got"),
    # 4001 = 500 · 8 + 1, likewise.
    ({"batch_size": 500}, VERSE * 20, "500 .* of 8 .* need at least 4001"),
    (
      {"batch_size": 500},
      VERSE * 20,
      "^--batch_size=500, --seq_len=8 and --val_fraction=0.1 do not fit /",
    ),
    (
      {"late_batch_size": 500, "num_epochs": 3},
      VERSE * 20,
      "--late_batch_size=500, --seq_len=8 .* fit /.* 500 sequences of 8 ",
    ),
    (
      {"batch_size": 500, "dev_fraction": 0.2, "test_fraction": 0.1},
      f"{VERSE}\n\n" * 20,
      "^--batch_size=500, --seq_len=8, --dev_fraction=0.2, "
      "--test_fraction=0.1 and --val_fraction=0.1 do not fit /",
    ),
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
    Path(config.data.corpus).write_text(text, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(replace(config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(config.job.run).exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_epochs": 0}, r"num_epochs must be in \[1, inf\), got 0"),
    ({"val_fraction": 0.0}, r"^val_fraction must be in \(0, 1\), got 0.0$"),
    ({"val_fraction": 1.0}, r"^val_fraction must be in \(0, 1\), got 1.0$"),
    ({"learning_rate": 0.0}, r"^learning_rate must be in \(0, inf\), got 0.0$"),
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


def test_a_directory_without_a_run_or_with_another_config_is_refused(
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
