"""Evaluation of trained models: its losses are those of the library."""

import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from rich.console import Console

from experiments import evaluate, explore, report, train
from experiments.analysis import dynamic_eval, protocols
from experiments.analysis.dynamic_eval import RATES
from experiments.analysis.protocols import MIXED, PROTOCOLS
from experiments.evaluate import EvaluateConfig
from experiments.trainer import run_dir
from experiments.trainer.flags import config_from_flags, define_flags
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
from tests.experiments.conftest import VERSE, make_config
from tests.experiments.pages import explored


@pytest.fixture
def options(run):
  return EvaluateConfig((str(run),), window=16, segment=4)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
  """Return the directory of a finished run and its corpus; only to be read."""
  config = make_config(tmp_path_factory.mktemp("evaluate"))
  config = replace(config, num_epochs=3, learning_rate=0.03, quiet=True)
  with jax.numpy_dtype_promotion("standard"):
    train.run(config, Console(file=io.StringIO()))
  return config.job.run, config.data.corpus


@pytest.fixture
def run(trained_run, tmp_path):
  """Return a copy of the finished run, with a corpus of its own."""
  directory, corpus = trained_run
  shutil.copytree(directory, tmp_path / "run")
  shutil.copy(corpus, tmp_path / "verse.txt")
  edit_config(tmp_path / "run", corpus=str(tmp_path / "verse.txt"))
  return tmp_path / "run"


def test_the_flags_are_the_fields_and_protocol_may_be_repeated():
  values = flags.FlagValues()
  holders = define_flags(EvaluateConfig(), values)
  values(["evaluate", "--run=r", "--protocol=dynamic", "--protocol=cold"])
  config = config_from_flags(EvaluateConfig(), holders)
  assert config == EvaluateConfig(("r",), protocol=("dynamic", "cold"))
  for wrong in ("--protocol=hot", "--window=0", "--rate=nan", "--begin=-1"):
    with pytest.raises(flags.IllegalFlagValueError):
      values(["evaluate", wrong])


def edit_config(directory, **changes):
  path = directory / run_dir.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.exhaustive
def test_a_flag_of_a_protocol_that_is_left_out_is_a_warning(
  run, options, console
):
  evaluate.run(replace(options, protocol=("stateful",)), console)
  shown = console.file.getvalue()
  reason = "has no effect: --protocol leaves out"
  assert f"\nwarning --window=16 {reason} cold\n" in shown
  assert f"\nwarning --segment=4 {reason} dynamic and mixed\n" in shown


def test_every_protocol_is_measured_and_recorded(run, options, console):
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
  assert nats["cold"] == cold_nats(model, params, val_tokens, 16).mean()
  assert abs(nats["stateful"] - trained.val_loss) < 1e-6
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
  assert abs(record["predictions"] - 0.25 * 20 * 62) < 2


def test_a_protocol_has_the_texts_and_weights_that_it_needs(
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
    outcome = protocols.Outcome(name, nats, {}, [])
    return SimpleNamespace(outcome=lambda name: outcome)

  monkeypatch.setattr(evaluate, "load_members", load_members)
  monkeypatch.setattr(evaluate, "Protocols", stand_in)
  for name in PROTOCOLS:
    one = replace(options, protocol=(name,), checkpoint="last")
    record = evaluate.run(one, console)
    assert (record["checkpoint"], record["nats"]) == ("last", {name: 1})
  assert checkpoints == ["last"] * 5
  train_size = int(0.9 * 20 * len(VERSE))
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


@pytest.fixture
def other(run):
  """Another run on the corpus of `run`, untrained and of another size."""
  config = load(run).config
  directory = str(run.parent / "other")
  return explored.write_run(replace(config, run=directory, hidden_size=5))


@pytest.mark.exhaustive
def test_several_runs_are_an_ensemble(run, other, options, console):
  together = replace(options, run=(str(run), str(other)), protocol=PROTOCOLS)
  together = replace(together, rate=1e-3, decay=0.1)
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
  assert record["mixed"]["order"] == 7
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
    evaluate.run(replace(options, run=(str(run), f"{run}/")), console)


def test_a_mixture_needs_characters(word_config, console):
  directory = str(explored.write_run(word_config))
  for name in MIXED:
    options = EvaluateConfig((directory,), protocol=(name,), segment=1)
    with pytest.raises(
      ValueError, match="mixing is for models of characters, got"
    ):
      evaluate.run(options, console)


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
  protocols = "cold", "stateful"
  options = EvaluateConfig((str(result.directory),), protocol=protocols)
  record = evaluate.run(options, console)
  tokenizer = load(result.directory).tokenizer
  _, val_text = split(
    read_text(word_config.data.corpus), word_config.data.val_fraction
  )
  tokens = tokenizer.encode(val_text)
  unknown = tokens == tokenizer.size - 1
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


def test_a_perplexity_that_overflows_is_null(run, options, console):
  """exp of more than 709.8 nats is no float."""
  wild = replace(options, protocol=("cold",), rate=None)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      protocols, "cold_nats", lambda *args: np.full(len(args[2]) - 1, 800.0)
    )
    record = evaluate.run(wild, console)
  assert record["perplexity"] == {"cold": None}
  saved = json.loads((run / run_dir.EVALUATION).read_text())
  assert saved["nats"] == {"cold": 800.0}
  assert " inf" in console.file.getvalue()


def test_the_scale_of_a_long_segment_has_the_tokens_that_it_needs(
  run, options, console, monkeypatch
):
  monkeypatch.setattr(dynamic_eval, "SCALE_TOKENS", 100)  # below 32 · 4 + 1
  one = replace(options, protocol=("dynamic",), rate=1e-4, decay=0.0)
  assert evaluate.run(one, console)["nats"]["dynamic"] > 0


@pytest.mark.exhaustive
def test_rate_and_decay_are_chosen_first_and_then_the_segment(
  run, options, console, monkeypatch
):
  """On the end of the text before, which is too short for a segment of 40."""
  monkeypatch.setattr(dynamic_eval, "RATES", (1e-4, 3e-2, 1e300))
  monkeypatch.setattr(dynamic_eval, "DECAYS", (0.02,))
  monkeypatch.setattr(dynamic_eval, "TUNING", 300)
  chosen = replace(options, protocol=("dynamic",), segment=None)
  record = evaluate.run(chosen, console)
  trained = load(run)
  data = trained.config.data
  text, _ = split(read_text(data.corpus), data.val_fraction)
  before = trained.tokenizer.encode(text)

  def nats(rate, segment):
    model = trained.model, trained.params
    scale = gradient_scale(*model, make_batches(before, 32, segment))
    config = DynamicEvalConfig(rate, 0.02, segment)
    return dynamic_nats(*model, before[-300:], scale, config).mean()

  rate = min((1e-4, 3e-2), key=lambda rate: nats(rate, 20))
  segment = min((10, 20), key=lambda segment: nats(rate, segment))
  chosen = {"rate": rate, "decay": 0.02, "segment": segment}
  assert record["dynamic"] == chosen
  printed = " ".join(console.file.getvalue().split())
  assert "are the best of 4 settings on the 300 tokens" in printed


def test_settings_are_chosen_on_the_end_of_the_text_before(monkeypatch):
  """Each with the gradient's scale on the start, by segments of its length.

  Here the loss counts the settings that are not the best, and 1e-4 diverges.
  """
  best, tried = DynamicEvalConfig(3e-5, 2e-3, 40), []
  wanted = best
  before, tokens = np.arange(300_000), np.arange(7)

  def scale(model, params, batches):
    inputs, _ = batches.batch(batches.num_batches - 1)
    assert inputs.shape == (len(inputs), 32) and 150_000 < inputs.max() < 2e5
    return len(batches.batch(0)[0])

  def nats(model, params, text, r, config):
    assert r == config.segment
    if len(text) == 7:
      return np.full(6, 5.0)
    assert (text[0], text[-1]) == (280_000, 299_999)
    tried.append(config)
    if config.rate == 1e-4:
      raise dynamic_eval.Divergence
    return np.full(3, sum(x != y for x, y in zip(config, wanted, strict=True)))

  monkeypatch.setattr(dynamic_eval, "gradient_scale", scale)
  monkeypatch.setattr(dynamic_eval, "dynamic_nats", nats)
  arguments = None, None, before, tokens

  def choose(**fixed):
    tried.clear()
    settings = dynamic_eval.FixedSettings(**fixed)
    choice, found = dynamic_eval.evaluate_dynamically(*arguments, settings)
    assert found.tolist() == [-5.0] * 6
    return choice

  assert choose() == (best, 0.0, 14, 20_000)
  assert {config.segment for config in tried[:12]} == {20}
  assert choose(segment=10) == (best._replace(segment=10), 1.0, 12, 20_000)
  assert choose(rate=1e-6).config == best._replace(rate=1e-6)
  assert len(tried) == 5  # three decays, and two more segments
  assert choose(decay=2e-2).config == best._replace(decay=2e-2)
  assert choose(rate=0.5, decay=0.1, segment=3) == (
    (0.5, 0.1, 3),
    None,
    0,
    20_000,
  )
  wanted = best._replace(segment=20)  # that of the choice of rate and decay
  assert choose().config == wanted


def test_the_text_before_has_a_whole_batch_of_segments():
  for segment, needed in ((None, 641), (4, 129)):
    fixed = dynamic_eval.FixedSettings(segment=segment)
    dynamic_eval.check_text_before(needed, fixed)
    with pytest.raises(ValueError, match=f"at least {needed} tokens, got"):
      dynamic_eval.check_text_before(needed - 1, fixed)
  fixed = dynamic_eval.FixedSettings()
  assert dynamic_eval._segment_sizes(1281, fixed) == [20, 10, 40]
  assert dynamic_eval._segment_sizes(1280, fixed) == [20, 10]


@pytest.mark.exhaustive
def test_the_choice_on_several_cores_is_that_on_one(run):
  trained = load(run)
  data = trained.config.data
  texts = split(read_text(data.corpus), data.val_fraction)
  before, tokens = map(trained.tokenizer.encode, texts)

  def results(cores):
    fixed = dynamic_eval.FixedSettings()
    return dynamic_eval.evaluate_dynamically(
      trained.model, trained.params, before, tokens, fixed, threads=cores
    )

  (choice, nats), (expected, expected_nats) = results(4), results(1)
  assert choice == expected
  assert (nats == expected_nats).all()


@pytest.mark.exhaustive
def test_each_core_of_the_process_tries_a_setting(
  run, options, console, monkeypatch
):
  pool, threads = dynamic_eval.ThreadPoolExecutor, []
  monkeypatch.setattr(
    dynamic_eval,
    "ThreadPoolExecutor",
    lambda count: threads.append(count) or pool(count),
  )
  monkeypatch.setattr(evaluate, "num_cores", lambda: 3)
  fixed = {"rate": 1e-4, "decay": 0.02, "protocol": ("dynamic",)}
  evaluate.run(replace(options, **fixed), console)
  assert threads == [3]


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


def test_results_on_the_same_text_and_weights_are_merged(run, options, console):
  path = run / run_dir.EVALUATION

  def saved(*protocols, **changes):
    changed = replace(options, protocol=protocols, **changes)
    record = evaluate.run(changed, console)
    assert list(record["nats"]) == [*protocols]
    return json.loads(path.read_text())

  dynamic = saved("dynamic", rate=1e-3, decay=0.1)
  both = saved("cold")
  assert {*both["nats"]} == {*both["nats_per_character"]} == {"cold", "dynamic"}
  assert both["nats"]["dynamic"] == dynamic["nats"]["dynamic"]
  assert (both["dynamic"], both["window"]) == (dynamic["dynamic"], 16)
  assert {*saved("stateful", begin=0.8)["nats"]} == {"stateful"}
  path.write_text("[1]")
  assert {*saved("stateful")["nats"]} == {"stateful"}
