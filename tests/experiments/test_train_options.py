import json
from pathlib import Path

import numpy as np
import pytest

from experiments import train
from experiments.trainer import logger as run_logger
from experiments.trainer.data import read_corpus
from experiments.trainer.history import derive, read_run_history
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import BEST, LAST, load
from lstm_jax.language import middle_slice, read_text, split
from lstm_jax.language.evaluate import stateful_nats
from lstm_jax.training import eval_params, read_state
from tests.draws import worst
from tests.experiments.conftest import VERSE
from tests.experiments.trainer.resuming import read_rows


@pytest.mark.exhaustive
def test_a_test_split_is_evaluated_once_with_the_best_weights(
  config, console, monkeypatch
):
  drawn = []
  monkeypatch.setattr(
    run_logger, "draw_losses", lambda rows, unit, path: drawn.append(rows)
  )
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
  # The last picture is drawn after the test loss is written.
  assert drawn[-1] == read_rows(result.directory)


@pytest.mark.exhaustive
def test_the_epoch_of_an_evaluation_counts_the_larger_batches_at_the_end(
  config, console
):
  config = replace(config, num_epochs=3, late_batch_size=6, eval_every=10**6)
  made = make_setup(config)
  first, second, last = (epoch.num_batches for epoch in made.epochs())
  assert first == second > last
  assert made.epochs_made(first) == 1
  assert made.epochs_made(first + second + 1) == 2 + 1 / last
  assert made.epochs_made(made.num_steps) == 3
  train.run(config, console)
  history = read_run_history(Path(config.job.run))
  assert derive(history).epoch_ends == [first, 2 * first, 2 * first + last]
  assert f"step {made.num_steps}, epoch 3.0: " in console.file.getvalue()


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.4])
def test_the_epochs_made_are_known_without_making_batches(
  short_seq_prob, config, monkeypatch
):
  options = {"seed": 3, "num_epochs": 4, "late_batch_size": 6}
  made = make_setup(replace(config, **options, short_seq_prob=short_seq_prob))
  expected = [0.0]
  for number, epoch in enumerate(made.epochs()):
    length = epoch.num_batches
    expected += [number + step / length for step in range(1, length + 1)]
  monkeypatch.setattr("lstm_jax.language.epochs.make_batches", None)
  steps = range(made.num_steps + 1)
  assert [made.epochs_made(step) for step in steps] == expected


@pytest.fixture
def dev_config(config):
  """Return the config of a run with a development split, of whole speeches."""
  with open(config.data.corpus, "w", encoding="utf-8") as file:
    file.writelines(f"{VERSE}Number {n}.\n\n" for n in range(30))
  return replace(config, dev_fraction=0.2, test_fraction=0.1, quiet=True)


@pytest.mark.exhaustive
def test_a_development_split_is_left_out_and_evaluated(dev_config, console):
  result = train.run(dev_config, console)
  text = read_text(dev_config.data.corpus)
  corpus = read_corpus(dev_config.data)
  # The test split is the last tenth of the text, the validation split the last
  # tenth of the rest: 0.81 of the text stands before both.
  first, last = middle_slice(text[: int(0.81 * len(text))], 0.2)
  assert corpus.val.text == text[first:last]
  assert corpus.train.text == text[:first] + text[last : int(0.81 * len(text))]
  assert corpus.train.gap == first and corpus.test is None
  trained = load(result.directory)
  tokens = trained.tokenizer.encode(text[first:last])
  nats = stateful_nats(trained.model, trained.params, tokens).mean()
  assert abs(nats - result.val_loss) < 1e-6
  assert not any("test_loss" in row for row in read_rows(result.directory))
  shown = console.file.getvalue()
  assert f"development characters {first:,} to {last:,} are left out" in shown
  steps = dev_config.batching.num_steps(corpus.train.tokens, 0, first)
  assert derive(read_run_history(result.directory)).num_steps == steps
  assert read_rows(result.directory)[-1]["step"] == steps


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"dev_fraction": 0.001},
      "^--dev_fraction=0.001, .* do not fit /.*: no slice",
    ),
    (
      {"seq_len": 370, "batch_size": 2},
      "^--dev_fraction=0.2 is too small: .* --seq_len=370, got 370 tokens",
    ),
    (
      {"batch_size": 1},
      "--dev_fraction=0.2, .* need a batch_size of at least 3, .* got 1 and 8$",
    ),
    # 4002 = 500 · 8 + 2: the first token of each of two pieces is no target.
    ({"batch_size": 500}, "^--batch_size=500, .* need at least 4002 tokens"),
  ],
)
def test_a_development_split_that_does_not_fit_is_refused(
  changes, message, dev_config, console
):
  with pytest.raises(ValueError, match=message):
    train.run(replace(dev_config, **changes), console)
  assert not Path(dev_config.job.run).exists()


def test_words_that_only_the_development_split_has_are_unknown(dev_config):
  corpus = read_corpus(replace(dev_config.data, tokenizer="word", min_count=1))
  unknown = corpus.val.tokens == corpus.tokenizer.size - 1
  numbers = corpus.val.text.count("Number")
  assert unknown.sum() == numbers > 1
  assert not (corpus.train.tokens == corpus.tokenizer.size - 1).any()


@pytest.mark.exhaustive
def test_the_last_weights_are_those_of_the_last_step_whatever_its_loss(
  config, console, monkeypatch
):
  losses = iter((1.0, 2.0, 0.5, 3.0, 4.0))  # after steps 10, 20, 30, 40, 47
  monkeypatch.setattr(train, "stateful_loss", lambda *_: next(losses))
  result = train.run(replace(config, ema_decay=0.9), console)
  best, last = (load(result.directory, name) for name in (BEST, LAST))
  assert (best.step, best.val_loss) == (30, 0.5)
  assert (last.step, last.val_loss) == (47, 4.0)
  checkpoints = result.directory / "checkpoints"
  like = make_setup(replace(config, ema_decay=0.9)).state_like
  averaged = eval_params(read_state(checkpoints, 47, like))
  assert worst(last.params, averaged) == 0
  assert worst(last.params, best.params) > 0


def test_last_weights_of_an_unfinished_run_or_a_sweep_are_refused(finished):
  (finished / "result.json").unlink()
  with pytest.raises(
    ValueError, match="not finished: the checkpoint must be best"
  ):
    load(finished, LAST)
  path = finished / "config.json"
  record = json.loads(path.read_text()) | {"num_seeds": 2}
  path.write_text(json.dumps(record))
  with pytest.raises(
    ValueError, match=r"is a sweep, .* must be best, got last"
  ):
    load(finished, LAST)


def test_averaged_weights_are_saved(finished_config, config, console):
  averaged = train.run(replace(config, ema_decay=0.9), console)
  a, b = (
    load(directory).params
    for directory in (Path(finished_config.job.run), averaged.directory)
  )
  assert np.abs(np.asarray(a.readout) - np.asarray(b.readout)).max() > 1e-4
  val = read_corpus(config.data).val  # they are evaluated, too
  nats = stateful_nats(make_setup(config).model, b, val.tokens).mean()
  assert abs(nats - averaged.val_loss) < 1e-6


@pytest.mark.exhaustive
def test_the_average_starts_once_the_validation_loss_rises(config, console):
  config = replace(
    config,
    learning_rate=1.0,  # too large to settle
    schedule="constant",
    num_epochs=2,
    eval_every=8,
  )
  samples, losses = [], []
  for patience in (1, 0):
    run = f"{config.job.run}{patience}"
    each = replace(config, asgd_patience=patience, run=run)
    directory = train.run(each, console).directory
    samples.append((directory / "samples.txt").read_text(encoding="utf-8"))
    rows = read_rows(directory)
    losses.append([row["val_loss"] for row in rows if "val_loss" in row])
  averaged, plain = (text.split("=== ") for text in samples)
  start = ["weights are averaged" in part for part in averaged].index(True)
  heading = averaged[start].split("; from here")[0]
  assert plain[start].startswith(heading)  # until then the runs are equal
  assert averaged[:start] == plain[:start]
  # Before the evaluations: an empty part, and the untrained model's sample.
  first = start - 2
  assert losses[0][: first + 1] == losses[1][: first + 1]
  # With a patience of 1, the average starts when a loss is above the least of
  # the losses before the previous one.
  rises = [
    number
    for number in range(2, len(losses[1]))
    if losses[1][number] > min(losses[1][: number - 1])
  ]
  assert rises[0] == first
  assert averaged[start + 1] != plain[start + 1]
  assert "averaged" not in samples[1]
  assert "".join(averaged).count("weights are averaged") == 1
