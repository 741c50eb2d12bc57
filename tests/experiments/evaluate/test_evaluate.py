"""Evaluation of trained models: what is measured, printed, saved, refused."""

import json
import math
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import evaluate, explore, report, train
from experiments.analysis import protocols
from experiments.analysis.dynamic_eval import RATES
from experiments.analysis.protocols import MIXED, PROTOCOLS
from experiments.evaluate import EvaluateConfig
from experiments.trainer import run_dir
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.language import make_batches, middle_slice, read_text, split
from lstm_jax.language.dynamic_eval import (
  DynamicEvalConfig,
  dynamic_nats,
  gradient_scale,
)
from lstm_jax.language.evaluate import (
  cold_nats,
  nats_per_character,
  stateful_nats,
)
from lstm_jax.language.word_tokenizer import WordTokenizer
from tests.experiments.conftest import VERSE, VERSES, edit_config
from tests.experiments.pages import explored


@pytest.mark.exhaustive
def test_each_default_protocol_is_measured_and_recorded(run, options, console):
  record = evaluate.run(options, console)
  assert json.loads((run / run_dir.EVALUATION).read_text()) == record
  trained = load(run)
  data = trained.config.data
  tokens = trained.tokenizer.encode(read_text(data.corpus))
  before, val_tokens = split(tokens, data.val_fraction)
  model, params = trained.model, trained.params
  assert record["predictions"] == len(val_tokens) - 1
  nats = record["nats"]
  assert nats["stateful"] == stateful_nats(model, params, val_tokens).mean()
  # The fixture `options` has windows of 16 tokens and segments of 4.
  assert nats["cold"] == cold_nats(model, params, val_tokens, 16).mean()
  assert abs(nats["stateful"] - trained.val_loss) < 1e-6
  # 32 is `dynamic_eval.SCALE_BATCH`.
  scale = gradient_scale(model, params, make_batches(before, 32, 4))
  chosen = DynamicEvalConfig(**record["dynamic"])
  assert chosen.segment == 4 and chosen.rate in RATES
  dynamic = dynamic_nats(model, params, val_tokens, scale, chosen)
  assert nats["dynamic"] == dynamic.mean()
  for name, mean in record["nats_per_character"].items():
    assert abs(mean - nats[name]) < 1e-12
  printed = console.file.getvalue()
  for name, mean in nats.items():
    assert name in printed and f"{mean:.4f}" in printed
    assert f"{math.exp(mean):.3f}" in printed
  part = replace(options, begin=0.5, end=0.75, protocol=("cold",))
  record = evaluate.run(part, console)
  assert list(record["nats"]) == ["cold"]
  assert abs(record["predictions"] - 0.25 * len(VERSES)) < 2


def test_a_protocol_gets_only_the_texts_it_reads_and_the_named_checkpoint(
  run, options, console, monkeypatch
):
  members, checkpoints, sizes = [load(run)], [], {}

  def load_members(directories, checkpoint):
    checkpoints.append(checkpoint)
    return members

  def stand_in(members, texts, settings, names):
    (name,) = names
    sizes[name] = len(texts.before), [*map(len, texts.training)]
    nats = np.ones(len(texts.tokens) - 1)
    yield name, protocols.Outcome(name, nats, {}, [])

  monkeypatch.setattr(evaluate, "load_members", load_members)
  monkeypatch.setattr(evaluate, "outcomes", stand_in)
  for name in PROTOCOLS:
    one = replace(options, protocol=(name,), checkpoint="last")
    record = evaluate.run(one, console)
    assert (record["checkpoint"], record["nats"]) == ("last", {name: 1})
  assert checkpoints == ["last"] * 5  # PROTOCOLS
  train_size = int(0.9 * len(VERSES))
  assert sizes == {
    "cold": (0, []),
    "stateful": (0, []),
    "dynamic": (train_size, []),
    "mixed": (train_size, [train_size]),
    "mixed_stateful": (0, [train_size]),
  }


@pytest.mark.exhaustive
def test_the_development_split_is_evaluated_unless_another_is_named(
  config, console
):
  with open(config.data.corpus, "w", encoding="utf-8") as file:
    file.writelines(f"{VERSE}Number {n}.\n\n" for n in range(30))
  config = replace(config, dev_fraction=0.2, test_fraction=0.1)
  directory = str(explored.write_run(config))
  options = EvaluateConfig((directory,), protocol=("stateful",))
  text, trained = read_text(config.data.corpus), load(Path(config.job.run))
  # The validation split is 0.1 of the 0.9 before the test split. The other 0.81
  # of the text hold the training split, with the development split within.
  for name, first, last in (
    (None, *middle_slice(text[: int(0.81 * len(text))], 0.2)),
    ("dev", *middle_slice(text[: int(0.81 * len(text))], 0.2)),
    ("val", int(0.81 * len(text)), int(0.9 * len(text))),
    ("test", int(0.9 * len(text)), len(text)),
  ):
    record = evaluate.run(replace(options, split=name), console)
    assert record["split"] == (name or "dev")
    tokens = trained.tokenizer.encode(text[first:last])
    nats = stateful_nats(trained.model, trained.params, tokens).mean()
    assert record["nats"]["stateful"] == nats
    shown = console.file.getvalue()
    assert f": characters {first:,} to {last:,} of {len(text):,}\n" in shown


def test_a_run_with_a_test_split_is_evaluated_on_it(run, options, console):
  edit_config(run, test_fraction=0.2)
  record = evaluate.run(replace(options, protocol=("cold",)), console)
  assert record["begin"] == 0.8
  trained = load(run)
  _, test_text = split(read_text(trained.config.data.corpus), 0.2)
  tokens = trained.tokenizer.encode(test_text)
  nats = cold_nats(trained.model, trained.params, tokens, 16)
  assert record["nats"]["cold"] == nats.mean()


@pytest.mark.exhaustive
def test_several_runs_are_an_ensemble(run, other, options, console):
  together = replace(options, run=(str(run), str(other)), rate=1e-3, decay=0.1)
  # One protocol, and then the others: the file has the results of both calls.
  evaluate.run(replace(together, protocol=("cold",)), console)
  found = evaluate.run(replace(together, protocol=PROTOCOLS[1:]), console)
  record = json.loads((run / run_dir.ENSEMBLE).read_text())
  assert not (run / run_dir.EVALUATION).exists()
  assert [*record["nats"]] == [*PROTOCOLS]
  members = [load(run), load(other)]
  sizes = [p.size for m in members for p in jax.tree.leaves(m.params)]
  assert (record["members"], record["parameters"]) == (2, sum(sizes))
  assert record["training_seconds"] is None  # the other is not finished
  assert record["step"] == [members[0].step, 0]
  assert record["runs"] == [str(run), str(other)]
  settings = {"rate": 1e-3, "decay": 0.1, "segment": 4}
  assert record["dynamic"] == [settings, settings]
  assert record["mixed"]["order"] == 7  # the default of `ngram`
  text = read_text(members[0].config.data.corpus)
  tokens = members[0].tokenizer.encode(split(text, 0.1)[1])
  nats = [stateful_nats(m.model, m.params, tokens) for m in members]
  expected = -np.log(np.mean(np.exp(-np.array(nats)), axis=0)).mean()
  assert abs(record["nats"]["stateful"] - expected) < 1e-6
  for name, mean in found["nats"].items():
    assert abs(record["bits_per_character"][name] - mean / np.log(2)) < 1e-12
    assert abs(record["perplexity"][name] - np.exp(mean)) < 1e-12
  printed = console.file.getvalue()
  assert f"members 2, {sum(sizes):,} parameters\n" in printed
  assert f"run     {other}, after step 0\n" in printed
  single = evaluate.run(replace(options, protocol=("cold",)), console)
  assert (single["members"], single["runs"]) == (1, None)
  seconds = json.loads((run / run_dir.RESULT).read_text())["seconds"]
  assert single["training_seconds"] == seconds
  printed = console.file.getvalue()
  assert f" parameters, {seconds:,.0f} s of training\n" in printed


@pytest.mark.exhaustive
def test_the_spelling_of_a_text_is_computed_once_for_each_cost(
  word_config, console, monkeypatch
):
  directory = explored.write_run(word_config)
  spelling_nats, calls = WordTokenizer.spelling_nats, []

  def spell(tokenizer, text, cached=False):
    calls.append(cached)
    return spelling_nats(tokenizer, text, cached)

  monkeypatch.setattr(WordTokenizer, "spelling_nats", spell)
  options = EvaluateConfig((str(directory),), protocol=("cold", "stateful"))
  record = evaluate.run(options, console)
  # Except in cold windows, a word that was spelled before (cached) costs less.
  assert calls == [False, True]
  text = read_text(word_config.data.corpus)
  _, text = split(text, word_config.data.val_fraction)
  tokenizer, size = load(directory).tokenizer, record["predictions"]
  for name, cached in (("cold", False), ("stateful", True)):
    total = record["nats"][name] * size
    expected = nats_per_character(tokenizer, text, total, cached)
    assert abs(record["nats_per_character"][name] - expected) < 1e-6


@pytest.mark.exhaustive
def test_a_word_model_is_measured_per_character_too(word_config, console):
  result = train.run(word_config, console)
  names = "cold", "stateful"
  options = EvaluateConfig((str(result.directory),), protocol=names)
  record = evaluate.run(options, console)
  tokenizer = load(result.directory).tokenizer
  _, val_text = split(
    read_text(word_config.data.corpus), word_config.data.val_fraction
  )
  tokens = tokenizer.encode(val_text)
  unknown = tokens == tokenizer.size - 1  # <unk> is the last token
  assert 3 < unknown.sum() < len(tokens)
  assert record["tokenizer"] == "word"
  assert record["predictions"] == len(tokens) - 1
  assert record["characters"] == len(val_text) - 1
  spelling = record["spelling"]
  assert spelling == {
    "cold": tokenizer.spelling_nats(val_text)[1:].sum(),
    "stateful": tokenizer.spelling_nats(val_text, cached=True)[1:].sum(),
  }
  assert spelling["cold"] != spelling["stateful"]
  assert min(spelling.values()) > 5 * unknown.sum()
  printed = console.file.getvalue()
  for nats in spelling.values():
    assert f"{nats / (len(val_text) - 1):.4f}" in printed
  assert f"{unknown[1:].mean():.2%} of them unknown" in printed
  for name, mean in record["nats"].items():
    total = mean * (len(tokens) - 1) + spelling[name]
    per_character = record["nats_per_character"][name]
    assert abs(per_character - total / (len(val_text) - 1)) < 1e-9
    for number in (
      f"{mean:.4f}",
      f"{math.exp(mean):.3f}",
      f"{per_character:.4f}",
      f"{per_character / math.log(2):.4f}",
    ):
      assert number in printed
  assert abs(record["nats"]["stateful"] - result.val_loss) < 1e-6


def test_a_perplexity_that_overflows_is_null(
  run, options, console, monkeypatch
):
  """A float64 cannot hold exp of more than 709.8 nats."""
  monkeypatch.setattr(
    protocols, "cold_nats", lambda *args: np.full(len(args[2]) - 1, 800.0)
  )
  record = evaluate.run(replace(options, protocol=("cold",)), console)
  assert record["perplexity"] == {"cold": None}
  saved = json.loads((run / run_dir.EVALUATION).read_text())
  assert saved["nats"] == {"cold": 800.0}
  assert " inf" in console.file.getvalue()


def test_results_on_the_same_text_and_weights_are_merged(run, options, console):
  path = run / run_dir.EVALUATION

  def saved(name, **changes):
    changed = replace(options, protocol=(name,), **changes)
    record = evaluate.run(changed, console)
    assert list(record["nats"]) == [name]
    return json.loads(path.read_text())

  dynamic = saved("dynamic", rate=1e-3, decay=0.1)
  both = saved("cold")
  assert {*both["nats"]} == {*both["nats_per_character"]} == {"cold", "dynamic"}
  assert both["nats"]["dynamic"] == dynamic["nats"]["dynamic"]
  assert (both["dynamic"], both["window"]) == (dynamic["dynamic"], 16)
  # Results on another part of the text replace those in the file.
  assert {*saved("stateful", begin=0.8)["nats"]} == {"stateful"}
  path.write_text("[1]")  # valid JSON, but no record
  assert {*saved("stateful")["nats"]} == {"stateful"}


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


def test_a_damaged_configuration_is_an_error_that_names_the_flag(
  run, options, console
):
  edit_config(run, val_fraction="a")
  for program in (
    lambda: evaluate.run(options, console),
    lambda: explore.run(explore.ExploreConfig(str(run)), console),
    lambda: report.run([str(run)], report.ReportConfig(), console),
  ):
    with pytest.raises(ValueError, match=r"val_fraction must be .*, got"):
      program()
