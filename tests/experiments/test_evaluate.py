import dataclasses
import json
import math
from pathlib import Path

import pytest

from experiments import evaluate, explore, report, train
from experiments.analysis import dynamic_eval
from experiments.analysis.dynamic_eval import RATES
from experiments.trainer import run_dir
from lstm_jax.language import make_batches, read_text, split
from lstm_jax.language.evaluate import (
  DynamicEvalConfig,
  cold_nats,
  dynamic_nats,
  gradient_scale,
  stateful_nats,
)

OPTIONS = {
  "corpus": "",
  "begin": None,
  "end": 1.0,
  "protocol": ["cold", "stateful", "dynamic"],
  "window": 16,
  "segment": 4,
  "rate": None,
  "decay": None,
}


def test_every_protocol_is_measured_and_recorded(config, console):
  config = dataclasses.replace(config, num_epochs=3, learning_rate=0.03)
  directory = str(train.run(config, console).directory)
  record = evaluate.run(run=directory, **OPTIONS, console=console)
  kept = json.loads((Path(directory) / run_dir.EVALUATION).read_text())
  assert kept == record
  trained = run_dir.load(Path(directory))
  _, held_out = split(
    trained.vocabulary.encode(read_text(config.corpus)), config.val_fraction
  )
  model, params = trained.model, trained.params
  assert record["predictions"] == len(held_out) - 1
  nats = record["nats"]
  assert nats["stateful"] == stateful_nats(model, params, held_out).mean()
  assert nats["cold"] == cold_nats(model, params, held_out, 16).mean()
  before, _ = split(
    trained.vocabulary.encode(read_text(config.corpus)), config.val_fraction
  )
  scale = gradient_scale(model, params, make_batches(before, 32, 4))
  how = DynamicEvalConfig(**record["dynamic"])
  assert (how.segment, how.rate in RATES) == (4, True)
  dynamic = dynamic_nats(model, params, held_out, scale, how)
  assert nats["dynamic"] == dynamic.mean()
  for name, mean in record["nats_per_character"].items():
    assert abs(mean - nats[name]) < 1e-12
  shown = console.file.getvalue()
  for name, mean in nats.items():
    assert name in shown and f"{mean:.4f}" in shown
    assert f"{math.exp(mean):.3f}" in shown
  part = OPTIONS | {"begin": 0.5, "end": 0.75, "protocol": ["cold"]}
  record = evaluate.run(run=directory, **part, console=console)
  assert list(record["nats"]) == ["cold"]
  assert abs(record["predictions"] - 0.25 * 20 * 62) < 2


def test_words_are_measured_by_their_characters_too(word_config, console):
  result = train.run(word_config, console)
  directory = str(result.directory)
  options = OPTIONS | {"protocol": ["cold", "stateful"]}
  record = evaluate.run(run=directory, **options, console=console)
  vocabulary = run_dir.load(result.directory).vocabulary
  _, held_out = split(read_text(word_config.corpus), word_config.val_fraction)
  tokens = vocabulary.encode(held_out)
  unknown = tokens == vocabulary.size - 1
  assert 3 < unknown.sum() < len(tokens)
  assert record["tokens"] == "word"
  assert record["predictions"] == len(tokens) - 1
  assert record["characters"] == len(held_out) - 1
  assert record["spelling"] == vocabulary.spelling(held_out)[1:].sum()
  assert record["spelling"] > 5 * unknown.sum()
  shown = console.file.getvalue()
  assert f"{unknown[1:].mean():.2%} unknown" in shown
  for name, mean in record["nats"].items():
    total = mean * (len(tokens) - 1) + record["spelling"]
    per_character = record["nats_per_character"][name]
    assert abs(per_character - total / (len(held_out) - 1)) < 1e-9
    for figure in (
      f"{mean:.4f}",
      f"{math.exp(mean):.3f}",
      f"{per_character:.4f}",
      f"{per_character / math.log(2):.4f}",
    ):
      assert figure in shown
  assert abs(record["nats"]["stateful"] - result.held_out) < 1e-6


def test_what_cannot_be_evaluated_is_an_error_that_says_why(config, console):
  directory = str(train.run(config, console).directory)

  def refused(match, **changes):
    with pytest.raises(ValueError, match=match):
      evaluate.run(run=directory, **OPTIONS | changes, console=console)

  refused("at least 2 tokens between them, got 0.9 and 0.9", begin=0.9, end=0.9)
  refused("at least 2 tokens between them, got 0.9 and 1.5", end=1.5)
  refused("at least 129 tokens, got 0; --protocol=cold", begin=0.0)
  alone = {"protocol": ["dynamic"], "rate": 1e300}
  refused("diverges at token", **alone, decay=0.0)
  refused(r"diverges at every rate of 1e\+300", **alone)
  refused(r"the decay in \[0, 1\], got 4", protocol=["dynamic"], decay=2.0)
  refused("cannot be read", corpus="/nowhere/at/all")
  Path(config.corpus).write_text("Shall I compare thee?\n" * 60)
  refused("verse.txt has changed since the run began")
  assert not (Path(directory) / run_dir.EVALUATION).exists()
  own = OPTIONS | {"corpus": config.corpus, "protocol": ["cold"]}
  evaluate.run(run=directory, **own, console=console)


def test_where_one_protocol_fails_the_others_are_told_and_kept(config, console):
  directory = train.run(config, console).directory
  wild = OPTIONS | {"rate": 1e300, "decay": 0.0}
  with pytest.raises(ValueError, match="diverges at token"):
    evaluate.run(run=str(directory), **wild, console=console)
  nats = json.loads((directory / run_dir.EVALUATION).read_text())["nats"]
  assert list(nats) == ["cold", "stateful"]
  shown = console.file.getvalue()
  assert all(f"{mean:.4f}" in shown for mean in nats.values())


def test_rate_and_decay_are_chosen_and_then_the_segment(
  config, console, monkeypatch
):
  """On the end of the text before, of which a segment of 40 needs more."""
  monkeypatch.setattr(dynamic_eval, "RATES", (1e-4, 3e-2, 1e300))
  monkeypatch.setattr(dynamic_eval, "DECAYS", (0.02,))
  monkeypatch.setattr(dynamic_eval, "TUNING", 300)
  directory = train.run(config, console).directory
  options = OPTIONS | {"protocol": ["dynamic"], "segment": None}
  record = evaluate.run(run=str(directory), **options, console=console)
  trained = run_dir.load(directory)
  text, _ = split(read_text(config.corpus), config.val_fraction)
  before = trained.vocabulary.encode(text)

  def nats(rate, segment):
    of = trained.model, trained.params
    scale = gradient_scale(*of, make_batches(before, 32, segment))
    how = DynamicEvalConfig(rate, 0.02, segment)
    return dynamic_nats(*of, before[-300:], scale, how).mean()

  rate = min((1e-4, 3e-2), key=lambda rate: nats(rate, 20))
  segment = min((10, 20), key=lambda segment: nats(rate, segment))
  chosen = {"rate": rate, "decay": 0.02, "segment": segment}
  assert record["dynamic"] == chosen
  assert "are the best of 4 ways on the 300 tokens" in console.file.getvalue()


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
  change, config, console
):
  directory = train.run(config, console).directory
  path = directory / run_dir.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  (name,) = change
  programs = (
    lambda: evaluate.run(run=str(directory), **OPTIONS, console=console),
    lambda: explore.run(explore.ExploreConfig(str(directory)), console),
    lambda: report.run(report.ReportConfig((str(directory),)), console),
  )
  for program in programs:
    with pytest.raises(ValueError, match=f"must have a .* for {name}, got"):
      program()


def test_figures_of_the_same_text_and_weights_stand_side_by_side(
  config, console
):
  directory = train.run(config, console).directory
  path = directory / run_dir.EVALUATION

  def evaluated(*protocol, **changes):
    options = OPTIONS | {"protocol": [*protocol]} | changes
    found = evaluate.run(run=str(directory), **options, console=console)
    assert list(found["nats"]) == [*protocol]
    return json.loads(path.read_text())

  dynamic = evaluated("dynamic", rate=1e-3, decay=0.1)
  both = evaluated("cold")
  assert {*both["nats"]} == {*both["nats_per_character"]} == {"cold", "dynamic"}
  assert both["nats"]["dynamic"] == dynamic["nats"]["dynamic"]
  assert (both["dynamic"], both["window"]) == (dynamic["dynamic"], 16)
  assert {*evaluated("stateful", begin=0.8)["nats"]} == {"stateful"}
  path.write_text("[1]")
  assert {*evaluated("stateful")["nats"]} == {"stateful"}
