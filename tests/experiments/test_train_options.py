import json
from pathlib import Path

import numpy as np

from experiments import train
from experiments.trainer.data import read_corpus
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.language import read_text, split
from lstm_jax.language.evaluate import stateful_nats
from tests.experiments.trainer.resuming import read_rows


def test_a_test_split_is_evaluated_once_with_the_best_weights(config, console):
  config = replace(config, test_fraction=0.1, val_fraction=0.25, num_epochs=2)
  result = train.run(config, console)
  val_losses = [
    row["val_loss"] for row in read_rows(result.directory) if "val_loss" in row
  ]
  (tested,) = [row for row in read_rows(result.directory) if "test_loss" in row]
  assert tested["step"] == result.best_step
  assert min(val_losses) == result.val_loss
  trained = load(result.directory)
  tokens = trained.tokenizer.encode(read_text(config.data.corpus))
  rest, test = split(tokens, 0.1)
  _, val = split(rest, 0.25)
  for expected, part in (
    (result.val_loss, val),
    (tested["test_loss"], test),
  ):
    nats = stateful_nats(trained.model, trained.params, part).mean()
    assert abs(nats - expected) < 1e-6
  record = json.loads((result.directory / "result.json").read_text())
  assert record["test_loss"] == tested["test_loss"]
  assert f"test loss {tested['test_loss']:.4f}" in console.file.getvalue()


def test_averaged_weights_are_saved(finished_config, config, console):
  averaged = train.run(replace(config, ema_decay=0.9), console)
  a, b = (
    load(directory).params
    for directory in (Path(finished_config.job.run), averaged.directory)
  )
  assert np.abs(np.asarray(a.readout) - np.asarray(b.readout)).max() > 1e-4


def test_every_option_of_batching_applies(config, console):
  config = replace(
    config,
    num_epochs=3,
    random_offsets=True,
    short_seq_prob=0.3,
    late_batch_size=6,
    eval_every=5,
  )
  result = train.run(config, console)
  tokens = read_corpus(config.data).train.tokens
  num_steps = config.batching.num_steps(tokens, config.seed)
  assert read_rows(result.directory)[-1]["step"] == num_steps


def test_a_tied_model_is_saved_and_loaded(config, console):
  config = replace(config, tied=True, embedding_size=12)
  trained = load(train.run(config, console).directory)
  assert trained.params.readout is None
  val = read_corpus(config.data).val.tokens
  nats = stateful_nats(trained.model, trained.params, val).mean()
  assert abs(nats - trained.val_loss) < 1e-6


def test_the_average_starts_once_the_validation_loss_rises(config, console):
  config = replace(
    config,
    learning_rate=1.0,  # too large to settle
    schedule="constant",
    num_epochs=2,
    eval_every=8,
  )
  samples = []
  for patience in (1, 0):
    config = replace(
      config, asgd_patience=patience, run=f"{config.job.run}{patience}"
    )
    directory = train.run(config, console).directory
    samples.append((directory / "samples.txt").read_text(encoding="utf-8"))
  averaged, plain = (text.split("=== ") for text in samples)
  start = ["weights are averaged" in part for part in averaged].index(True)
  heading = averaged[start].split("; from here")[0]
  assert plain[start].startswith(heading)  # until then the runs are equal
  assert averaged[start + 1] != plain[start + 1]
  assert "averaged" not in samples[1]
  assert "".join(averaged).count("weights are averaged") == 1
