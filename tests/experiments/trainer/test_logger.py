"""The samples, the losses and the training time that a run logs."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.trainer import logger as run_logger
from experiments.trainer.checkpoint import Progress, Restored
from experiments.trainer.logger import RunLogger
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  Metrics,
  read_checkpoint,
)
from tests.experiments.trainer.resuming import read_rows


@pytest.fixture
def make_logger(config, console):
  """(options) -> a logger, the weights at the start, and the log of samples."""
  directory = Path(config.job.run)
  directory.mkdir()

  def make(**options):
    setup = make_setup(replace(config, **options))
    # `print` is in the place of the progress bar.
    logger = RunLogger(directory, setup, console, print)
    return logger, setup.make_state().params, directory / "samples.txt"

  return make


def test_samples_are_drawn_at_the_temperature_of_the_configuration(make_logger):
  logger, params, log = make_logger(temperature=0.0)
  for seed in (0, 1):  # greedy: no key matters
    logger.sample("greedy", params, jax.random.key(seed), 30)
  _, first, second = log.read_text().split("=== greedy ===\n")
  assert first == second


def test_samples_of_every_evaluation_have_a_key_of_their_own(make_logger):
  logger, params, log = make_logger(temperature=2.0)
  for logger.step in (0, 10, 20):
    logger.sample_during_training("new", params)
  logger.step = 10
  logger.sample_during_training("new", params)
  _, *texts, again = log.read_text().split("=== new ===\n")
  assert len(set(texts)) == 3 and again == texts[1]


def test_the_heading_of_a_sample_is_shown_whole(make_logger, console):
  logger, params, _ = make_logger(quiet=False)
  for length in (console.width - 2, console.width - 1, console.width + 5):
    with console.capture() as capture:
      logger.sample("x" * length, params, jax.random.key(0), 1)
    assert capture.get().count("x") >= length


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_run(loss, make_logger):
  logger, params, _ = make_logger()
  with pytest.raises(Diverged, match=f"loss is {loss} after step 0$"):
    logger.log_evaluation(loss, params)


def test_the_test_loss_is_logged_at_the_step_of_the_best_weights(make_logger):
  logger, params, log = make_logger()
  for logger.step, loss in ((10, 2.0), (20, 3.0)):
    logger.log_evaluation(loss, params)
  logger.finish(test_loss=2.5)
  assert read_rows(log.parent)[-1] == {"step": 10, "test_loss": 2.5}
  result = json.loads(log.with_name("result.json").read_text())
  assert (result["step"], result["last_step"]) == (10, 20)
  assert (result["val_loss"], result["test_loss"]) == (2.0, 2.5)


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_a_picture_that_cannot_be_drawn_hides_no_worse_error(
  kind, make_logger, console, monkeypatch
):
  def fail(*given):
    raise kind("no room " * 20)

  monkeypatch.setattr(run_logger, "draw_losses", fail)
  logger, _, log = make_logger()
  log.with_name("metrics.jsonl").write_text("")
  with pytest.raises(Diverged, match=r"^worse$"), logger:
    raise Diverged("worse")
  line = f"loss.png cannot be written: {'no room ' * 20}\n"
  assert console.file.getvalue() == line


@pytest.mark.parametrize(
  ("first", "second", "raised"),
  [
    (None, CheckpointError, CheckpointError),
    (KeyError, CheckpointError, CheckpointError),
    (Diverged, CheckpointError, Diverged),
    (Diverged, OSError, Diverged),
    (Diverged, ValueError, ValueError),  # the directory is another run's now
  ],
)
def test_a_divergence_is_raised_in_place_of_the_error_of_a_full_disk(
  first, second, raised, make_logger, console, monkeypatch
):
  def close(writer):
    raise second("no room for [1]")

  logger, _, _ = make_logger()
  monkeypatch.setattr(CheckpointWriter, "close", close)
  with pytest.raises(raised) as caught, logger:
    if first:
      raise first
  assert caught.type is raised
  printed = "no room for [1]\n" if raised is Diverged else ""
  assert console.file.getvalue() == printed


def test_a_divergence_is_raised_if_its_output_is_full_too(
  make_logger, console, monkeypatch
):
  def full(*given, **options):
    raise OSError("no room")

  logger, _, _ = make_logger()
  monkeypatch.setattr(CheckpointWriter, "close", full)
  monkeypatch.setattr(console, "print", full)
  with pytest.raises(Diverged, match=r"^worse$"), logger:
    raise Diverged("worse")


def test_a_run_is_finished_only_after_its_last_checkpoint_is_written(
  make_logger, monkeypatch
):
  logger, params, log = make_logger()
  logger.log_evaluation(1.5, params)
  result, found = log.with_name("result.json"), []
  monkeypatch.setattr(
    CheckpointWriter, "wait", lambda writer: found.append(result.exists())
  )
  logger.finish(test_loss=None)
  assert found == [False] and result.exists()


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is set."""
  now = [10.0]
  time = SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(run_logger, "time", time)
  return now


def log_steps(logger, *steps):
  """Log training steps: (loss, gradient norm, number of tokens) of each."""
  for loss, grad_norm, num_tokens in steps:
    norms = {"layer1": np.float32(grad_norm)}
    metrics = Metrics(np.float32(loss), grad_norm, num_tokens, norms)
    logger.log_step(logger.step + 1, metrics)


def last_row(log, *names):
  row = read_rows(log.parent)[-1]
  return tuple(row[name] for name in names)


MEANS = "train_loss", "grad_norm", "tokens_per_second", "seconds", "skipped"


def test_a_row_has_the_means_of_the_finite_steps_and_the_speed_of_all(
  make_logger, clock
):
  logger, _, log = make_logger(nonfinite="skip")
  logger.start_clock()
  log_steps(logger, (1, 3, 10), (2, 5, 10), (math.nan, 7, 10))
  clock[0] += 2
  logger.flush()
  assert last_row(log, *MEANS) == (1.5, 4.0, 15, 2.0, 1)  # 30 tokens in 2 s
  clock[0] += 5  # an evaluation: `flush` has stopped the clock
  logger.start_clock()
  log_steps(logger, (8, 1, 6), (4, math.inf, 6))
  clock[0] += 3
  logger.flush()
  assert last_row(log, *MEANS) == (8.0, 1.0, 4, 5.0, 2)
  logger.start_clock()
  clock[0] += 9
  logger.flush()  # no step has taken this time
  assert len(read_rows(log.parent)) == 2 and logger.seconds == 5.0


def test_the_time_includes_the_steps_that_were_still_running(
  make_logger, clock
):
  class Running:
    """A loss that is known 3 s after it is asked for."""

    def __array__(self, dtype=None, copy=None):
      clock[0] += 3
      return np.asarray(1.0, dtype)

  logger, _, log = make_logger()
  logger.start_clock()
  logger.log_step(1, Metrics(Running(), np.float32(2), 30, grad_norms={}))
  clock[0] += 2
  logger.flush()
  assert last_row(log, *MEANS[:4]) == (1.0, 2.0, 6, 5.0)  # 30 tokens in 5 s


def test_more_steps_in_a_row_than_may_be_skipped_end_the_run(
  make_logger, clock, monkeypatch
):
  monkeypatch.setattr(run_logger, "MAX_SKIPPED", 1)
  logger, _, _ = make_logger(nonfinite="skip")
  logger.step = 5
  logger.start_clock()
  # Steps 6 to 9, of which 6 and the last two are not finite.
  fine, wrong = (1, 1, 1), (math.inf, 1, 1)
  log_steps(logger, (math.nan, 1, 1), fine, wrong, (1, math.nan, 1))
  clock[0] += 1
  message = (
    "^the gradient is not finite at step 9, and at most 1 in a row may be "
    r"skipped$"
  )
  with pytest.raises(Diverged, match=message):
    logger.flush()


def test_what_a_checkpoint_holds_is_continued(make_logger, clock, monkeypatch):
  monkeypatch.setattr(run_logger, "MAX_SKIPPED", 1)
  logger, _, log = make_logger(nonfinite="skip")
  state = logger._setup.make_state()
  logger.start_clock()
  log_steps(logger, (math.nan, 1, 10), (1, 1, 10), (math.nan, 1, 10))
  clock[0] += 4
  logger.flush()
  logger.start_clock()
  log_steps(logger, (1, 2, 10))
  clock[0] += 2
  logger.save(state)
  logger.__exit__(None, None, None)
  _, description = read_checkpoint(log.parent / "checkpoints")
  progress = Progress(**description["progress"])
  assert progress.pending_seconds == 2.0 and progress.seconds == 4.0
  # Two steps were skipped in all, and one right before the pending step.
  assert progress.pending == [[1, 2, 10]] and progress.skipped == [2, 1]
  restored = Restored(state._replace(step=4), progress, None)

  resumed, _, _ = make_logger(nonfinite="skip")
  resumed.resume(restored)
  resumed.start_clock()
  log_steps(resumed, (3, 4, 20))
  clock[0] += 1
  resumed.flush()
  assert last_row(log, *MEANS) == (2.0, 3.0, 10, 7.0, 2)
  resumed.resume(restored._replace(progress=progress._replace(pending=[])))
  resumed.start_clock()
  resumed.step = 3
  log_steps(resumed, (math.nan, 1, 10))
  clock[0] += 1
  with pytest.raises(Diverged, match="loss is nan at step 4, and at most 1"):
    resumed.flush()
