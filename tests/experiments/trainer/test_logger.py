"""The samples and the losses that a run logs."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from experiments.trainer import plot
from experiments.trainer.errors import Diverged, closing_run
from experiments.trainer.logger import Best, RunLogger
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from lstm_jax.training import CheckpointError
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
  def fail(directory, unit):
    raise kind("no room " * 20)

  monkeypatch.setattr(plot, "draw", fail)
  logger, _, log = make_logger()
  log.with_name("metrics.jsonl").write_text("{}\n")
  with pytest.raises(Diverged, match=r"^worse$"), closing_run(logger, console):
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
  first, second, raised, console
):
  def close():
    raise second("no room for [1]")

  with (
    pytest.raises(raised) as caught,
    closing_run(SimpleNamespace(close=close), console),
  ):
    if first:
      raise first
  assert caught.type is raised
  printed = "no room for [1]\n" if raised is Diverged else ""
  assert console.file.getvalue() == printed


def test_a_divergence_is_raised_if_its_output_is_full_too():
  def full(*arguments, **options):
    raise OSError("no room")

  run, output = SimpleNamespace(close=full), SimpleNamespace(print=full)
  with pytest.raises(Diverged, match=r"^worse$"), closing_run(run, output):
    raise Diverged("worse")


def test_a_run_is_finished_only_after_its_last_checkpoint_is_written(
  tmp_path, monkeypatch
):
  done = []
  monkeypatch.setattr(
    "experiments.trainer.logger.write_json", lambda path, _: done.append(path)
  )
  unfinished = SimpleNamespace(
    best=Best(step=3, val_loss=1.5, params=None),
    buffer=SimpleNamespace(seconds=2.0),
    directory=tmp_path,
    step=9,
    _setup=SimpleNamespace(num_steps=9),
    _checkpoints=SimpleNamespace(wait=lambda: done.append("checkpoint")),
    _is_writer=True,
  )
  RunLogger.finish(unfinished, test_loss=None)
  assert done == ["checkpoint", tmp_path / "result.json"]
