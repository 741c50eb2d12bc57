"""What is compared: configuration, corpus, and the sizes of the cells."""

import pytest

from experiments.comparison.cells import (
  CompareConfig,
  count_parameters,
  make_models,
  nearest_size,
  read_corpus,
)
from experiments.trainer.config import CELLS
from experiments.trainer.records import from_record, leaves, replace, to_record
from lstm_jax.language import ModelConfig


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"learning_rate": ()}, "learning_rate must have at least one value"),
    ({"learning_rate": (1.0, 0.0)}, r"must be in \(0, inf\), got \(1.0, 0.0\)"),
    ({"delay": (5, 0)}, r"delay must be in \[1, inf\), got \(5, 0\)"),
    ({"delay": (5, 1, 5)}, "delay must have distinct values, got 5, 1, 5"),
    ({"recall_learning_rate": (1e-2, 1e-2)}, "must have distinct values"),
    ({"learning_rate": (1e-2, 1e-2)}, "learning_rate must have distinct valu"),
    ({"cells": ("gru",)}, "cells must be distinct and include lstm, got"),
    ({"cells": ("lstm", "lstm")}, "cells must be distinct and include"),
    ({"cells": ("lstm", "gpt")}, "cells must be one of lstm, layernorm_lstm,"),
    ({"seed": -1}, r"seed must be in \[0, 2147483647\], got -1"),
    ({"num_seeds": 0}, r"num_seeds must be in \[1, inf\), got 0"),
  ],
)
def test_a_value_out_of_range_is_an_error(change, message):
  with pytest.raises(ValueError, match=message):
    replace(CompareConfig(), **change)


def test_the_flags_are_those_of_what_is_compared_and_no_others():
  config = CompareConfig()
  record = to_record(config)
  assert {"corpus", "hidden_size", "seq_len", "weight_decay"} <= set(record)
  assert len(record) == len([*leaves(config)]) == 22  # no name twice
  for name in ("cell", "num_layers", "num_epochs", "test_fraction"):
    with pytest.raises(TypeError, match=f"has no flag '{name}'"):
      replace(config, **{name: 1})


def test_a_record_gives_back_the_same_configuration():
  config = replace(CompareConfig(), delay=(3, 4), seq_len=7, weight_decay=0.1)
  assert from_record(CompareConfig(), to_record(config)) == config
  # Not the flag, which holds the rates to try: the updates of each model are
  # scaled by its own rate.
  assert config.optimizer.learning_rate == 1.0


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


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_size_with_the_nearest_number_of_parameters(name):
  sizes, multiple = CompareConfig().model, 4 if name == "slstm" else 1
  models = make_models([name, "lstm"], sizes, 64)
  target, size = models["lstm"].num_parameters, models[name].hidden_size
  misses = {
    other: abs(count_parameters(config, 64) - target)
    for other in (size - multiple, size, size + multiple)
    for config in [ModelConfig(CELLS[name], sizes.embedding_size, other)]
  }
  assert misses[size] == abs(models[name].num_parameters - target)
  assert min(misses, key=misses.get) == size
  assert misses[size] / target < 0.01
  assert models["lstm"].hidden_size == sizes.hidden_size
  assert size % multiple == 0


@pytest.mark.parametrize(
  ("sizes", "multiple", "found"),
  [
    (range(1, 21), 1, {26: 5, 35: 6, 0: 1, 1000: 20}),
    (range(4, 21, 4), 4, {0: 4, 17: 4, 39: 4, 41: 8, 256: 16, 1000: 20}),
  ],
)
def test_the_nearest_size_is_above_or_below_or_at_a_limit(
  sizes, multiple, found
):
  """The number of parameters is the square of the size, which is at most 20."""
  square = {size: size * size for size in sizes}.__getitem__
  for target, size in found.items():
    assert nearest_size(square, target, 20, multiple) == size


@pytest.mark.exhaustive
def test_a_minimal_gru_can_have_as_many_parameters_as_a_large_lstm():
  models = make_models(("min_gru", "lstm"), ModelConfig(hidden_size=464), 64)
  counts = {name: model.num_parameters for name, model in models.items()}
  assert abs(counts["min_gru"] / counts["lstm"] - 1) < 0.01
