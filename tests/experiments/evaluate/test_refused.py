"""Runs and options that cannot be evaluated, alone or together."""

import json
import shutil

import pytest

from experiments import evaluate, explore, report
from experiments.analysis.protocols import MIXED
from experiments.evaluate import EvaluateConfig
from experiments.trainer import run_dir
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.language import read_text
from tests.experiments.conftest import edit_config
from tests.experiments.pages import explored


@pytest.mark.exhaustive
def test_runs_that_do_not_belong_together_are_refused(
  run, other, options, console
):
  def refused(match, **changes):
    edit_config(other, **changes)
    with pytest.raises(ValueError, match=match):
      evaluate.run(replace(options, run=(str(run), str(other))), console)

  same = "must have the same corpus, vocabulary and splits"
  sha256 = load(run).corpus_sha256
  refused(f"{same}: the corpus of .*other differs", corpus_sha256="0")
  refused(f"{same}: --dev_fraction of", corpus_sha256=sha256, dev_fraction=0.1)
  corpus = run.parent / "more.txt"
  corpus.write_text(read_text(load(run).config.data.corpus) + "§")
  shutil.rmtree(other)
  changed = replace(load(run).config, corpus=str(corpus), run=str(other))
  explored.write_run(changed)
  refused(f"{same}: the vocabulary of", corpus_sha256=sha256)
  with pytest.raises(ValueError, match="run is given twice"):
    evaluate.run(
      replace(options, run=(str(run), f"{run}/../{run.name}")), console
    )


def test_a_mixture_needs_characters_and_a_loss_needs_two_words(
  word_config, console
):
  directory = str(explored.write_run(word_config))
  # Short segments: the text before is long enough for dynamic evaluation.
  for name in MIXED:
    options = EvaluateConfig((directory,), protocol=(name,), segment=1)
    with pytest.raises(
      ValueError, match="mixing is for models of characters, got"
    ):
      evaluate.run(options, console)
  # The first three characters are a part of one word.
  options = replace(options, protocol=("cold",), begin=0.0, end=0.003)
  with pytest.raises(ValueError, match=r"needs at least 2 tokens, .* got 1$"):
    evaluate.run(options, console)
  assert console.file.getvalue() == ""


def test_what_cannot_be_evaluated_is_an_error_that_says_why(
  run, options, console
):
  corpus = run.parent / "verse.txt"

  def refused(match, **changes):
    with pytest.raises(ValueError, match=match):
      evaluate.run(replace(options, **changes), console)

  short = "at least 2 characters between them, got 0.9 and"
  refused(f"{short} 0.9", begin=0.9, end=0.9)
  refused(r"end must be in \(0, 1\], got 1.5", end=1.5)
  # 129: a batch of 32 segments of 4 tokens, and the last token to predict.
  refused("at least 129 tokens, got 0; --protocol=cold", begin=0.0)
  alone = {"protocol": ("dynamic",), "rate": 1e300}
  refused("diverges at token", **alone, decay=0.0)
  refused(r"diverges at every rate of 1e\+300", **alone)
  refused(r"decay must be in \[0, 1\], got 2.0", decay=2.0)
  refused("protocol must be one of cold, .*, got", protocol=("hot",))
  refused("cannot be read", corpus="/nowhere/at/all")
  corpus.write_text("Shall I compare thee?\n" * 60)
  refused("verse.txt has changed since the run started")
  assert not (run / run_dir.EVALUATION).exists()
  corpus.write_text("€\n" + "Shall I compare thee?\n" * 60, encoding="utf-8")
  other = replace(options, corpus=str(corpus), begin=0.5)
  evaluate.run(replace(other, protocol=("cold", "stateful")), console)
  with pytest.raises(ValueError, match="character '€' at position 0 is not in"):
    evaluate.run(other, console)  # which reads the text before, too


def test_if_a_protocol_fails_the_results_before_it_are_kept(
  run, options, console
):
  with pytest.raises(ValueError, match="diverges at token"):
    evaluate.run(replace(options, rate=1e300, decay=0.0), console)
  nats = json.loads((run / run_dir.EVALUATION).read_text())["nats"]
  assert list(nats) == ["cold", "stateful"]
  printed = console.file.getvalue()
  assert all(f"{mean:.4f}" in printed for mean in nats.values())


@pytest.mark.parametrize(
  "change",
  [
    {"val_fraction": "a"},
    {"val_fraction": None},
    {"corpus": 3},
    {"num_epochs": 1.5},
  ],
)
def test_a_damaged_configuration_is_an_error_that_names_the_flag(
  change, run, options, console
):
  edit_config(run, **change)
  (name,) = change
  programs = (
    lambda: evaluate.run(options, console),
    lambda: explore.run(explore.ExploreConfig(str(run)), console),
    lambda: report.run([str(run)], report.ReportConfig(), console),
  )
  for program in programs:
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
      program()


def test_nothing_is_saved_in_a_run_that_replaced_the_evaluated_one(
  run, options, console, monkeypatch
):
  """The results are of weights that it does not have."""

  def replace_run(*given):
    edit_config(run, started="2999-01-01T00:00:00Z")

  monkeypatch.setattr(evaluate, "print_table", replace_run)
  options = replace(options, protocol=("cold",))
  with pytest.raises(ValueError, match="run was moved, deleted or replaced"):
    evaluate.run(options, console)
  assert not (run / run_dir.EVALUATION).exists()
