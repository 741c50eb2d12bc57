import dataclasses
import json
import re
import signal
from pathlib import Path

import pytest

from experiments import ablate, train
from experiments.cli import Diverged
from experiments.trainer import run_dir
from lstm_jax.language import read_text, split
from lstm_jax.language.evaluate import stateful_loss


def test_each_change_is_trained_once_and_measured(config, console):
  changes = ["hidden_size=7", "output_dropout=0.5,num_epochs=2"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert [row["change"] for row in rows] == ["base", *changes]
  assert stopped_by is None
  for row in rows:
    trained = run_dir.load(Path(config.run) / row["change"])
    tokens = trained.vocabulary.encode(read_text(config.corpus))
    _, held_out = split(tokens, config.val_fraction)
    nats = stateful_loss(trained.model, trained.params, held_out)
    assert abs(row["stateful"] - nats) < 1e-6
    assert row["cold"] > 0 and row["seconds"] > 0
  assert rows[1]["parameters"] < rows[0]["parameters"] == rows[2]["parameters"]
  path = Path(config.run) / ablate.RECORD
  record = json.loads(path.read_text(encoding="utf-8"))
  assert record["rows"] == rows
  assert record["recipe"]["hidden_size"] == config.hidden_size
  assert {"versions", "device"} <= set(record)

  printed = console.file.getvalue()
  difference = rows[1]["stateful"] - rows[0]["stateful"]
  assert re.search(
    rf"hidden_size=7 .* {re.escape(f'{difference:+.4f}')}", printed
  )
  again = ablate.run(config, [*changes, "cell=rnn"], console).rows
  assert again[:3] == rows and again[3]["change"] == "cell=rnn"
  assert console.file.getvalue().count("run folder") == 4


def test_a_change_that_diverges_is_marked_and_the_others_go_on(config, console):
  wild = "optimizer=sgd,learning_rate=1e38,warmup_steps=0,clip_norm=0"
  rows, _ = ablate.run(config, [wild, "hidden_size=7"], console)
  assert rows[1] == {"change": wild, "diverged": True}
  assert rows[2]["stateful"] > 0
  printed = console.file.getvalue()
  assert "no checkpoint is kept" in printed
  assert re.search(r" diverged +$", printed, re.MULTILINE)
  assert ablate.run(config, [wild], console).rows == rows
  with pytest.raises(Diverged, match="no checkpoint is kept"):
    ablate.run(
      dataclasses.replace(ablate.changed(config, wild), run=f"{config.run}2"),
      [],
      console,
    )


def test_all_can_be_trained_anew(config, console):
  ablate.run(config, [], console)
  config = dataclasses.replace(config, learning_rate=0.01, overwrite=True)
  rows, _ = ablate.run(config, [], console)
  path = Path(config.run) / ablate.RECORD
  record = json.loads(path.read_text(encoding="utf-8"))
  assert (record["rows"], record["recipe"]["learning_rate"]) == (rows, 0.01)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("depth=3", "of training flags, got 'depth' in 'depth=3'"),
    ("run=elsewhere", "of training flags, got 'run'"),
    ("", "of training flags, got ''"),
    ("num_layers=two", "num_layers must be of kind int, got 'two'"),
    ("tied=yes", "tied must be of kind bool, got 'yes'"),
    ("weight_drop=1.5", r"weight_drop must be in \[0, 1\), got 1.5"),
    ("schedule=none", "schedule must be in .* got 'none'"),
    ("learning_rate=0", "learning_rate must be positive and finite, got 0"),
    (
      "tokenizer=word",
      "must leave corpus, .* do not compare, got 'tokenizer=word'",
    ),
    ("seq_len=99999", "the text is too short: 3 streams of 99999"),
  ],
)
def test_a_change_that_is_none_is_refused_before_training(
  change, message, config, console
):
  with pytest.raises(ValueError, match=message):
    ablate.run(config, [change], console)
  assert not Path(config.run).exists()


def test_the_figures_of_another_recipe_are_not_mixed_in(config, console):
  with pytest.raises(ValueError, match="must be the folder of the runs"):
    ablate.run(dataclasses.replace(config, run=""), [], console)
  ablate.run(config, [], console)
  other = dataclasses.replace(config, learning_rate=0.1)
  with pytest.raises(ValueError, match=r"learning_rate was 0\.005 and is 0\.1"):
    ablate.run(other, [], console)
  text = Path(config.corpus).read_text()
  Path(config.corpus).write_text(text + "More.\n")
  with pytest.raises(ValueError, match="of another corpus: "):
    ablate.run(config, [], console)
  Path(config.corpus).write_text(text)
  path = Path(config.run) / ablate.RECORD
  for text in ("{", "[]", "{}", '{"recipe": {}, "rows": [1]}'):
    path.write_text(text)
    with pytest.raises(ValueError, match="cannot be read"):
      ablate.run(config, [], console)


def test_a_signal_ends_the_runs_and_the_next_call_goes_on(
  config, console, monkeypatch
):
  whole = train.stateful_loss

  def loss(*of):
    if console.file.getvalue().count("run folder") == 2:
      signal.raise_signal(signal.SIGTERM)
    return whole(*of)

  monkeypatch.setattr(train, "stateful_loss", loss)
  changes = ["hidden_size=7"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert stopped_by == signal.SIGTERM
  assert [row["change"] for row in rows] == ["base"]
  rows, stopped_by = ablate.run(config, changes, console)
  assert stopped_by is None
  assert [row["change"] for row in rows] == ["base", *changes]
  assert "goes on     after update" in console.file.getvalue()
