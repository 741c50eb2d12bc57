"""What an evaluation prints about its text before a protocol reads it."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import evaluate
from experiments.analysis.protocols import Outcome
from experiments.evaluate import EvaluateConfig
from experiments.trainer.records import replace
from tests.experiments.pages import explored


@pytest.fixture(autouse=True)
def unread(monkeypatch):
  """Have every protocol cost a nat per token, without a model."""

  def stand_in(members, texts, settings, names):
    nats = np.ones(len(texts.tokens) - 1)
    return SimpleNamespace(outcome=lambda name: Outcome(name, nats, {}, []))

  monkeypatch.setattr(evaluate, "Protocols", stand_in)


def test_characters_that_were_trained_on_give_a_warning(run, options, console):
  """The first 1,128 of 1,254 characters are the training split.

  From the middle of the text, at 627, 501 of them are read.
  """
  options = replace(options, protocol=("cold",))
  evaluate.run(options, console)
  assert "trained on" not in console.file.getvalue()
  record = evaluate.run(replace(options, begin=0.5), console)
  warning = "\nwarning 501 of these characters were trained on\n"
  assert warning in console.file.getvalue() and record["trained_on"] == 501


def test_blanks_that_a_word_model_drops_are_counted(
  word_config, console, tmp_path
):
  """Each time one after "art" and one after "more"; indentation is kept."""
  run = explored.write_run(word_config)
  text = tmp_path / "other.txt"
  text.write_text("Thou art  more \n  lovely.\n" * 3)
  options = EvaluateConfig((str(run),), corpus=str(text), protocol=("cold",))
  evaluate.run(replace(options, begin=0.0), console)
  (dropped,) = re.findall(
    r"\n +([\d,]+) blanks are dropped by the normal form",
    console.file.getvalue(),
  )
  assert dropped == "6"
