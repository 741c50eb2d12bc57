"""The configuration of a comparison: its bounds, its flags and its record."""

import pytest

from experiments.comparison.config import CompareConfig
from experiments.trainer.records import from_record, leaves, replace, to_record


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"learning_rate": ()}, "learning_rate must have at least one value"),
    ({"learning_rate": (1.0, 0.0)}, r"must be in \(0, inf\), got \(1.0, 0.0\)"),
    ({"learning_rate": (float("inf"),)}, r"must be in \(0, inf\), got \(inf,"),
    ({"recall_learning_rate": (-1.0,)}, "recall_learning_rate must be in"),
    ({"delay": (5, 0)}, r"delay must be in \[1, inf\), got \(5, 0\)"),
    ({"delay": (5, 1, 5)}, "delay must have distinct values, got 5, 1, 5"),
    ({"delay": 3}, "delay must be a tuple, got 3"),
    ({"recall_learning_rate": (1e-2, 1e-2)}, "must have distinct values"),
    ({"learning_rate": (1e-2, 1e-2)}, "learning_rate must have distinct valu"),
    ({"cells": ("gru",)}, "cells must be distinct and include lstm, got"),
    ({"cells": ("lstm", "lstm")}, "cells must be distinct and include"),
    ({"cells": ("lstm", "gpt")}, "cells must be one of lstm, layernorm_lstm,"),
    ({"seed": -1}, r"seed must be in \[0, 2147483647\], got -1"),
    ({"num_seeds": 0}, r"num_seeds must be in \[1, inf\), got 0"),
    ({"num_steps": 0}, r"num_steps must be in \[1, inf\), got 0"),
    ({"val_fraction": 1.0}, r"val_fraction must be in \(0, 1\), got 1.0"),
    ({"weight_decay": float("nan")}, "weight_decay must be in"),
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
