"""The splits and tokens of a corpus, and the part of it that is evaluated."""

import json
from typing import get_args, get_type_hints

import numpy as np
import pytest

from experiments.trainer.config import DataConfig
from experiments.trainer.corpus import text_sha256
from experiments.trainer.data import (
  default_prompt,
  make_tokenizer,
  read_corpus,
  read_excerpt,
  split_ranges,
  stored_tokenizer,
)
from experiments.trainer.records import replace
from lstm_jax.language import CharTokenizer

TEXT = "".join(f"Number {n:03}\n\n" for n in range(100))  # 1,200 characters


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "numbers.txt"
  path.write_text(TEXT)
  return DataConfig(str(path))


def read(data, path="", **part):
  return read_excerpt(data, text_sha256(TEXT), path, **part)


def place(excerpt):
  return excerpt.split, excerpt.first, excerpt.last, excerpt.training


def test_characters_that_only_the_validation_split_has_are_known(tmp_path):
  path = tmp_path / "text.txt"
  # The last 10 of the 100 characters are the validation split.
  path.write_text("ab" * 45 + "abx" * 3 + "a")
  corpus = read_corpus(DataConfig(str(path)))
  assert corpus.tokenizer.symbols == "abx"
  assert corpus.train.text == "ab" * 45
  assert corpus.val.tokens.tolist() == [0, 1, 2] * 3 + [0]
  assert corpus.test is None


def test_a_development_split_is_cut_out_of_the_training_split(data):
  every = replace(data, test_fraction=0.2, dev_fraction=0.25)
  corpus = read_corpus(every)
  assert corpus.train.text == TEXT[:324] + TEXT[540:864]
  assert corpus.train.gap == 324
  assert corpus.tokenizer.decode(corpus.train.tokens) == corpus.train.text
  assert corpus.val.text == TEXT[324:540]
  assert corpus.test is None
  corpus = read_corpus(replace(every, dev_fraction=0.0))
  assert (corpus.val.text, corpus.test.text) == (TEXT[864:960], TEXT[960:])
  assert (corpus.train.text, corpus.train.gap) == (TEXT[:864], None)


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


def test_the_default_split_is_dev_or_else_test_or_else_val(data):
  found = read(data)
  assert place(found) == ("val", 1080, 1200, [(0, 1080)])
  assert (found.begin, found.end) == (0.9, 1.0)
  # The validation split is then a tenth (val_fraction) of the first 960.
  found = read(replace(data, test_fraction=0.2))
  assert place(found) == ("test", 960, 1200, [(0, 864)])
  assert (found.begin, found.end) == (0.8, 1.0)
  every = replace(data, test_fraction=0.2, dev_fraction=0.25)
  training = [(0, 324), (540, 864)]
  found = read(every)
  assert place(found) == ("dev", 324, 540, training)
  assert (found.begin, found.end) == (0.27, 0.45)
  assert place(read(every, split="val")) == ("val", 864, 960, training)
  assert place(read(every, split="test")) == ("test", 960, 1200, training)
  assert [*split_ranges(every, TEXT)] == ["test", "train", "val", "dev"]


def test_the_training_text_beside_an_excerpt_has_none_of_it(data):
  found = read(replace(data, dev_fraction=0.2), begin=0.25, end=0.75)
  assert place(found) == (None, 300, 900, [(0, 300), (900, 1080)])
  assert (found.begin, found.end) == (0.25, 0.75)
  assert found.text == TEXT[300:900]
  assert place(read(data, begin=0.0)) == (None, 0, 1200, [])
  found = read(data, begin=0.5, end=602 / 1200)  # the shortest one
  assert place(found) == (None, 600, 602, [(0, 600), (602, 1080)])
  found = read(data, begin=0.55, end=0.57)  # 1200 · 0.57 is 683.99…
  assert place(found) == (None, 660, 684, [(0, 660), (684, 1080)])
  assert place(read(data, end=0.95)) == (None, 1080, 1140, [(0, 1080)])


def test_the_characters_that_a_run_was_trained_on_are_counted(data):
  assert read(data).trained_on == read(data, end=0.95).trained_on == 0
  assert read(data, begin=0.5).trained_on == 480  # to 1,080
  within = replace(data, dev_fraction=0.2)  # leaves out 432 to 648
  assert read(within).trained_on == 0
  assert read(within, end=0.75).trained_on == 252  # 648 to 900
  # The same holds where --corpus names the same text.
  found = read(within, path=within.corpus, begin=0.5)
  assert found.trained_on == 1080 - 648 and found.training == [(0, 432)]


def test_in_another_text_all_before_the_excerpt_is_training_text(
  data, tmp_path
):
  path = tmp_path / "other.txt"
  path.write_text("x" * 50)
  other = replace(data, test_fraction=0.2, dev_fraction=0.2)
  # The last 20 % of its 50 characters: the share of the test split.
  assert place(read(other, str(path))) == (None, 40, 50, [(0, 40)])
  assert place(read(other, str(path), begin=0.0)) == (None, 0, 50, [])
  assert place(read(other, str(path), end=0.9)) == (None, 40, 45, [(0, 40)])


def test_a_corpus_that_has_changed_is_not_evaluated(data):
  with open(data.corpus, "a") as file:
    file.write("more")
  with pytest.raises(ValueError, match=r"numbers.txt has changed since the"):
    read(data)


def test_an_unknown_character_is_named_with_its_place(data):
  found, tokenizer = read(data), CharTokenizer("\n 0123456789Nbemru")
  assert tokenizer.decode(found.encode(tokenizer, 300, 900)) == TEXT[300:900]
  message = "numbers.txt, from character 1,080 on: character 'b' at position 3"
  with pytest.raises(ValueError, match=message):
    found.encode(CharTokenizer("\n 0123456789Nemru"), 1080, 1200)


@pytest.mark.parametrize(
  ("part", "message"),
  [
    ({"split": "dev"}, "no development split: its --dev_fraction is 0"),
    ({"split": "test"}, "no test split: its --test_fraction is 0"),
    ({"split": "val", "begin": 0.5}, "--split=val is a part of .* --begin and"),
    ({"split": "val", "end": 0.5}, "--split=val is a part of .* --begin and"),
    ({"split": "val", "path": ""}, "--split=val is a part of .* without --cor"),
    ({"begin": 0.5, "end": 0.4}, "at least 2 characters between them, got 0.5"),
    ({"begin": 0.5, "end": 601 / 1200}, "at least 2 .*, got 0.5 and 0.50083"),
  ],
)
def test_a_part_that_does_not_exist_is_refused(part, message, data):
  if "path" in part:
    part = part | {"path": data.corpus}
  with pytest.raises(ValueError, match=message):
    read(data, **part)
