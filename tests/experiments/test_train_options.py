import dataclasses
import json

import numpy as np

from experiments import train
from experiments.trainer import run_dir
from experiments.trainer.config import reading
from lstm_jax.language import read_text, split
from lstm_jax.language.evaluate import stateful_nats


def test_the_development_text_is_watched_and_not_trained_on(config, console):
  config = dataclasses.replace(config, development=0.25, num_epochs=2)
  result = train.run(config, console)
  text = (result.directory / "metrics.jsonl").read_text(encoding="utf-8")
  rows = [json.loads(line) for line in text.splitlines()]
  watched = [row["development"] for row in rows if "development" in row]
  (final,) = [row["held_out"] for row in rows if "held_out" in row]
  assert min(watched) == result.held_out
  trained = run_dir.load(result.directory)
  tokens = trained.vocabulary.encode(read_text(config.corpus))
  training, held_out = split(tokens, config.val_fraction)
  _, development = split(training, 0.25)
  for expected, part in ((result.held_out, development), (final, held_out)):
    nats = stateful_nats(trained.model, trained.params, part).mean()
    assert abs(nats - expected) < 1e-6
  assert f"held-out loss {final:.4f}" in console.file.getvalue()


def test_averaged_weights_are_what_is_kept(config, console):
  plain = train.run(config, console)
  config = dataclasses.replace(config, ema_decay=0.9, run=config.run + "2")
  averaged = train.run(config, console)
  a, b = (run_dir.load(r.directory).params for r in (plain, averaged))
  assert np.abs(np.asarray(a.readout) - np.asarray(b.readout)).max() > 1e-4


def test_a_run_may_read_its_text_in_any_way(config, console):
  config = dataclasses.replace(
    config,
    num_epochs=3,
    random_offsets=True,
    short_seq_prob=0.3,
    late_batch_size=6,
    eval_every=5,
  )
  result = train.run(config, console)
  text = (result.directory / "metrics.jsonl").read_text(encoding="utf-8")
  last = [json.loads(line) for line in text.splitlines()][-1]
  tokens = run_dir.load(result.directory).vocabulary.encode(
    read_text(config.corpus)
  )
  training, _ = split(tokens, config.val_fraction)
  assert last["step"] == reading(config).num_steps(training)


def test_a_tied_model_is_kept_and_read_back(config, console):
  config = dataclasses.replace(config, tied=True, embedding_size=12)
  trained = run_dir.load(train.run(config, console).directory)
  assert trained.params.readout is None
  tokens = trained.vocabulary.encode(read_text(config.corpus))
  _, held_out = split(tokens, config.val_fraction)
  nats = stateful_nats(trained.model, trained.params, held_out).mean()
  assert abs(nats - trained.held_out) < 1e-6


def test_weights_are_averaged_once_the_loss_wanders(config, console):
  config = dataclasses.replace(
    config,
    learning_rate=1.0,  # which never settles
    schedule="constant",
    num_epochs=2,
    eval_every=8,
    asgd_patience=1,
  )
  samples = []
  for after in (1, 0):
    config = dataclasses.replace(
      config, asgd_patience=after, run=f"{config.run}{after}"
    )
    directory = train.run(config, console).directory
    samples.append((directory / "samples.txt").read_text(encoding="utf-8"))
  averaged, plain = (text.split("=== ") for text in samples)
  begins = ["weights are averaged" in look for look in averaged].index(True)
  heading = averaged[begins].split("; from here")[0]
  assert plain[begins].startswith(heading)  # until then they are one run
  assert averaged[begins + 1] != plain[begins + 1]
  assert "averaged" not in samples[1]
  assert "".join(averaged).count("weights are averaged") == 1
