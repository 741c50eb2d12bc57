"""The cells that the tests compare, and a record of such a comparison."""

NAMES = ["rnn", "gru", "lstm"]
# (cell, initial biases) of each model of the recall task. The RNN has no gates,
# and so no chrono biases.
RECALLS = [
  *((name, "usual") for name in NAMES),
  *((name, "chrono") for name in NAMES[1:]),
]


def example():
  """Return a record of two seeds with values that are easy to recognise."""

  def make_run(cell, budget, num_steps):
    return {
      "cell": cell,
      "budget": budget,
      "num_steps": num_steps,
      "evaluations": [
        {"step": 0, "val_loss": [4.0, 4.0]},
        {"step": 100, "val_loss": [2.0, 2.2]},
        {"step": num_steps, "val_loss": [1.0, 1.5]},
      ],
      "samples": [
        {
          "step": step,
          "words_in_train": [0.5, 0.7] if step else [0.1, 0.1],
          "words_in_val": [0.25, 0.25],
          "line_length": [None, 30.0],
          "rhymes": [0.0, 0.5] if step else [None, None],
          "text": "Shall I",
        }
        for step in (0, num_steps)
      ],
    }

  runs = [
    *(make_run(name, "equal steps", 150) for name in NAMES),
    make_run("rnn", "equal time", 170),
    make_run("gru", "equal time", 140),
  ]
  fields = {"rnn": "h", "gru": "h", "lstm": "hc"}
  return {
    "config": {"num_seeds": 2, "delay": [1, 5], "gradient_steps": 10},
    "cells": {
      name: {
        "hidden_size": 12,
        "num_parameters": 1904,
        "seconds_per_step": 0.5,
      }
      for name in NAMES
    },
    "corpus": {
      "text_statistics": {
        "validation text": {
          "words_in_train": 0.9,
          "words_in_val": 1.0,
          "line_length": 40.5,
          "rhymes": None,
        }
      }
    },
    "runs": runs,
    "context": [
      {k: run[k] for k in ("cell", "budget", "num_steps")}
      | {"lengths": [1, 2, 4], "val_loss": [[3.0, 2.0, 1.0], [3.0, 2.0, 1.5]]}
      for run in runs
    ],
    "gradient_flow": [
      {
        "cell": name,
        "stage": stage,
        "norms": {
          field: [(2.0 if field == "h" else 4.0) * 0.5**k for k in range(11)]
          for field in fields[name]
        },
      }
      for name in NAMES
      for stage in ("untrained", "trained")
    ],
    "recall": [
      {
        "cell": name,
        "forget_bias": bias,
        "hidden_size": 8,
        "num_parameters": 700,
        "delay": delay,
        "learning_rate": 0.001,
        "accuracy": [1.0, 1.0 if delay == 1 else accuracy],
        "loss": [0.1, 0.1],
      }
      for name, bias in RECALLS
      for delay in (1, 5)
      for accuracy in [0.5 if bias == "usual" else 0.7]
    ],
  }
