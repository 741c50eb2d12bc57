"""What is compared: configuration, corpus, and the sizes of the cells."""

import pytest

from experiments.comparison.cells import (
  CompareConfig,
  count_parameters,
  make_models,
  nearest_size,
  read_corpus,
)
from experiments.trainer.records import from_record, leaves, replace, to_record
from lstm_jax import gru, rnn, slstm
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
def test_each_cell_has_the_size_with_the_nearest_number_of_parameters():
  default = CompareConfig().model
  models = make_models(CompareConfig().cells, default, 64)
  target = models["lstm"].num_parameters
  assert models["lstm"].hidden_size == default.hidden_size
  for name, cell in (("rnn", rnn), ("gru", gru)):
    size = models[name].hidden_size
    misses = [
      abs(count_parameters(config, 64) - target)
      for config in (
        ModelConfig(cell, default.embedding_size, s)
        for s in (size - 1, size, size + 1)
      )
    ]
    assert misses[1] == abs(models[name].num_parameters - target)
    assert misses[1] == min(misses)
    assert misses[1] / target < 0.01
  assert models["rnn"].hidden_size > models["gru"].hidden_size


def test_the_nearest_size_is_above_or_below_or_at_the_limits():
  # The number of parameters is the square of the size, which is at most 20.
  square = {size: size * size for size in range(1, 21)}.__getitem__
  assert nearest_size(square, 26, 20) == 5
  assert nearest_size(square, 35, 20) == 6
  assert nearest_size(square, 0, 20) == 1
  assert nearest_size(square, 1000, 20) == 20


def test_the_nearest_size_is_one_of_the_multiples():
  square = {size: size * size for size in range(4, 21, 4)}.__getitem__
  found = [nearest_size(square, x, 20, 4) for x in (0, 17, 39, 41, 256, 1000)]
  assert found == [4, 4, 4, 8, 16, 20]


@pytest.mark.exhaustive
def test_the_size_of_an_slstm_is_the_nearest_multiple_of_four():
  sizes = ModelConfig(hidden_size=32, embedding_size=8)
  models = make_models(("slstm", "lstm"), sizes, 10)
  model, target = models["slstm"], models["lstm"].num_parameters
  misses = {
    size: abs(count_parameters(config, 10) - target)
    for size in (52, 56, 60)
    for config in [ModelConfig(slstm, 8, size)]
  }
  assert model.hidden_size == min(misses, key=misses.get) == 56
  assert abs(model.num_parameters - target) == misses[56]


@pytest.mark.exhaustive
def test_a_minimal_gru_can_have_as_many_parameters_as_a_large_lstm():
  models = make_models(("min_gru", "lstm"), ModelConfig(hidden_size=464), 64)
  counts = {name: model.num_parameters for name, model in models.items()}
  assert abs(counts["min_gru"] / counts["lstm"] - 1) < 0.01
