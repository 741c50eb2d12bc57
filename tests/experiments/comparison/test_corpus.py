"""The corpus of a comparison: its splits and the statistics of their text."""

import pytest

from experiments.comparison.corpus import read_corpus
from experiments.trainer.records import replace


def test_the_text_of_each_split_is_described(comparison):
  train = "the cat\nin hats\n" * 100
  val = "the day\nto play\nthe dog\nin fogs\nin hut\no no nut\n" * 4
  fraction = len(val) / len(train + val)
  with open(comparison.data.corpus, "w", encoding="utf-8") as file:
    file.write(train + val)
  corpus = read_corpus(replace(comparison, val_fraction=fraction))
  assert corpus.tokenizer.decode(corpus.val) == val
  assert corpus.tokenizer.decode(corpus.train) == train
  assert corpus.known_words[0] == {"the", "cat", "in", "hats"}
  inputs, _ = corpus.batches.batch(0)
  assert corpus.tokenizer.decode(inputs[:, 0]) == train[:8]
  statistics = corpus.statistics
  assert statistics["num_characters"] == len(train + val)
  assert statistics["num_val_characters"] == len(val)
  assert statistics["steps_per_epoch"] == 67  # ⌈1599 / (3 · 8)⌉
  # "the" and "in" are in both splits: 2 of the 4 words of `train`, and 4 of the
  # 13 of `val`, whose rhymes are day and play, hut and nut: 4 of 6 lines.
  of_train, of_val, of_shuffled = statistics["text_statistics"].values()
  assert (of_train["words_in_train"], of_train["words_in_val"]) == (1, 0.5)
  assert (of_val["words_in_train"], of_val["words_in_val"]) == (4 / 13, 1)
  assert (of_train["rhymes"], of_val["rhymes"]) == (0, 2 / 3)
  assert of_shuffled["rhymes"] < 2 / 3  # in a random order
  assert of_shuffled["line_length"] == of_val["line_length"]
  assert of_train["line_length"] == 7


def test_a_split_that_begins_within_a_line_is_described_from_the_next(
  comparison,
):
  text = "the cat sat\nin hats\n" * 50
  with open(comparison.data.corpus, "w", encoding="utf-8") as file:
    file.write(text)
  fraction = 209.5 / len(text)  # the last 210 characters
  corpus = read_corpus(replace(comparison, val_fraction=fraction))
  val = corpus.tokenizer.decode(corpus.val)
  assert val.startswith("t\n")  # of "sat"
  assert corpus.known_words[1] == {"the", "cat", "sat", "in", "hats"}
  described = corpus.statistics["text_statistics"]["validation text"]
  whole = [7, *[11, 7] * 10]  # the lines after that "t"
  assert described["line_length"] == sum(whole) / len(whole)


def test_a_text_without_lines_is_described_whole(comparison):
  with open(comparison.data.corpus, "w", encoding="utf-8") as file:
    file.write("the cat sat on a mat " * 100)
  corpus = read_corpus(comparison)
  assert "cat" in corpus.known_words[1]
  described = corpus.statistics["text_statistics"]["validation text"]
  assert described["words_in_val"] == 1


@pytest.mark.parametrize("name", ["context", "gradient_steps"])
def test_a_validation_split_shorter_than_a_window_is_an_error(comparison, name):
  config = replace(comparison, **{name: 1000})
  # The corpus has 3,100 characters; a tenth is the validation split.
  message = "at least 1,001 characters, got 310 of .*verse.txt$"
  with pytest.raises(ValueError, match=message):
    read_corpus(config)
  corpus = read_corpus(replace(comparison, **{name: 309}))
  assert len(corpus.val) == 310  # just enough
