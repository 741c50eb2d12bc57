"""The vocabulary of a corpus, and the prompt of a run's samples."""

import json
import os
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from experiments.trainer.config import DataConfig
from experiments.trainer.corpus_path import KEPT, find_corpus, keep
from experiments.trainer.data import (
  default_prompt,
  make_tokenizer,
  read_corpus,
  read_corpus_text,
  stored_tokenizer,
)
from lstm_jax.language import CharTokenizer
from tests.patterns import exact


def test_characters_that_only_the_validation_split_has_are_known(tmp_path):
  path = tmp_path / "text.txt"
  # The last 10 of the 100 characters are the validation split.
  path.write_text("ab" * 45 + "abx" * 3 + "a")
  corpus = read_corpus(DataConfig(str(path)))
  assert corpus.tokenizer.symbols == "abx"
  assert corpus.train.text == "ab" * 45
  assert corpus.val.tokens.tolist() == [0, 1, 2] * 3 + [0]


@pytest.mark.parametrize(
  "kind", get_args(get_type_hints(DataConfig)["tokenizer"])
)
def test_every_tokenizer_has_the_name_of_its_tokens_and_can_be_stored(kind):
  text = "to be or not to be"
  tokenizer = make_tokenizer(DataConfig(tokenizer=kind), text, text)
  assert tokenizer.unit == kind
  fields = json.loads(json.dumps(tokenizer._asdict()))
  assert stored_tokenizer(kind, fields) == tokenizer


def test_a_sample_begins_after_a_line_break_or_the_first_token():
  prompts = [default_prompt(CharTokenizer(s)) for s in ("\t\nab", "ab")]
  assert np.concatenate(prompts).tolist() == [1, 0]


def test_a_piped_text_that_begins_with_a_byte_order_mark_is_kept(tmp_path):
  text = "\ufeffa second mark, as of two files that were joined"
  keep(tmp_path, os.devnull, text)  # which is no regular file, as a pipe
  assert read_corpus_text(str(tmp_path / KEPT)) == text


def test_a_pipe_or_device_is_not_the_corpus_of_a_run(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  for path in (pipe, Path("/dev/zero")):  # neither would end
    with pytest.raises(ValueError, match=f"{exact(path)} is not a regular"):
      find_corpus(tmp_path, DataConfig(str(path)), "0")
