"""Sweeps that are stopped and resumed."""

import json
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import sweep, train
from experiments.trainer import run_dir, sweep_members
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import SHA256, open_run_dir, recorded_flags
from experiments.trainer.sweep_members import SweepConfig
from lstm_jax.training import list_checkpoints
from tests.experiments.sweep.sweeps import as_sweep
from tests.experiments.trainer.resuming import last_checksums, signal_at
from tests.processes import as_flags, run_program


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_devices_sweep_as_one_and_resume_bit_for_bit(config, tmp_path):
  default, found = to_record(SweepConfig()), {}

  def run(directory, **flags):
    record = to_record(as_sweep(config)) | {"num_seeds": 2, "run": directory}
    output = run_program(
      "experiments.sweep", *as_flags(record | flags, default)
    )
    result = json.loads((Path(directory) / "result.json").read_text())
    losses = [one["val_losses"] for one in result["members"]]
    found[directory.name] = np.array(losses)
    return output

  assert "shared" not in run(tmp_path / "one", devices="1")
  two = tmp_path / "two"
  assert ", shared by 2 devices\n" in run(two, devices="2")
  assert np.allclose(found["one"], found["two"], rtol=0, atol=2e-5)
  whole, (step, arrays) = found["two"], last_checksums(two)
  (two / "result.json").unlink()
  shutil.rmtree(two / f"checkpoints/{step}")
  output = run(two)
  assert ", shared by 2 devices\n" in output and "resumed" in output
  assert last_checksums(two) == (step, arrays)
  assert np.array_equal(found["two"], whole)


@pytest.mark.exhaustive
def test_a_sweep_that_was_stopped_ends_as_one_that_was_not(
  config, console, monkeypatch
):
  """It is stopped at an evaluation, and again among the late batches.

  The members at the second learning rate diverge.
  """
  config = as_sweep(
    config,
    num_seeds=2,
    rate=(0.005, 1e30),
    ema_decay=0.9,
    output_dropout=0.2,
    num_epochs=3,
    late_batch_size=4,
    eval_every=10,
  )
  whole = sweep.run(replace(config, run=f"{config.job.run}2"), console)
  assert whole.stopped_by is None
  assert np.isnan(whole.members[2].val_losses[-1][1])

  for step in (10, 103):  # the third epoch, of late batches, begins at step 95
    with monkeypatch.context() as patched:
      maker = sweep_members, "make_ensemble_train_step"
      signal_at(patched, step, signal.SIGTERM, maker)
      stopped = sweep.run(config, console)
    assert stopped.stopped_by == signal.SIGTERM
    assert not (stopped.directory / "result.json").exists()

  # A resumed sweep takes only the shapes of the initial state, for `restore`.
  def only_shapes(*arguments):
    state = sweep_members.make_state(*arguments)
    assert isinstance(state.step, jax.core.Tracer)
    return state

  monkeypatch.setattr(sweep, "make_state", only_shapes)
  result = sweep.run(config, console)
  assert result.stopped_by is None
  losses = ([one.val_losses for one in r.members] for r in (result, whole))
  assert np.array_equal(*losses, equal_nan=True)
  assert last_checksums(result.directory) == last_checksums(whole.directory)
  text = console.file.getvalue()
  assert "resumed     after step 10" in text
  assert "resumed     after step 103" in text


def test_a_sweep_without_a_checkpoint_begins_again_without_saying_resumed(
  config, console, monkeypatch
):
  def zeros(setup, members):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), setup.state_like)

  monkeypatch.setattr(sweep, "make_state", zeros)
  # As without a checkpoint. The real `restore` would read the axis of members,
  # which the zeros lack.
  monkeypatch.setattr(sweep, "restore", lambda *given: None)
  monkeypatch.setattr(sweep, "fit", lambda *a, **k: (None, signal.SIGTERM))
  for _ in range(2):  # stopped where a kill may end it: before a checkpoint
    sweep.run(as_sweep(config), console)
  assert "resumed" not in console.file.getvalue()


def test_the_seconds_of_a_resumed_sweep_go_on_from_those_before(
  config, console, monkeypatch
):
  """The clock is at 0 s when the resumed sweep starts to train, after 100 s.

  It is at 5 and 8 s before the two checkpoints, of which each takes a second.
  """
  clock, saved = iter((0.0, 5.0, 6.0, 8.0, 9.0)), []

  def zeros(directory, members, state, console):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state), 100.0

  def fit(train_step, state, epochs, num_steps, observer, **options):
    observer.save(1, state)
    observer.save(2, state)
    return state, signal.SIGTERM

  fake_time = SimpleNamespace(monotonic=lambda: next(clock))
  for name, stand_in in (
    ("time", fake_time),
    ("restore", zeros),
    ("fit", fit),
    ("save", lambda *given: saved.append(given[-1])),
  ):
    monkeypatch.setattr(sweep, name, stand_in)
  open_run_dir = run_dir.open_run_dir

  @contextmanager
  def opened(*given):
    with open_run_dir(*given) as found:
      yield found._replace(resuming=True)

  monkeypatch.setattr(run_dir, "open_run_dir", opened)
  result = sweep.run(as_sweep(config), console)
  assert saved == [105.0, 107.0] and result.seconds == 107.0


@pytest.mark.exhaustive
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_raises_nothing_from_before_the_first_step_to_the_result(
  many, console, monkeypatch
):
  def signal_before(name):
    function = getattr(sweep, name)

    def signalling(*arguments):
      signal.raise_signal(signal.SIGINT)
      return function(*arguments)

    return name, signalling

  with monkeypatch.context() as patched:
    patched.setattr(sweep, *signal_before("make_train_step"))
    stopped = sweep.run(many, console)
  assert stopped.stopped_by is signal.SIGINT
  assert list_checkpoints(stopped.directory / "checkpoints") == [1]
  monkeypatch.setattr(sweep, *signal_before("write_json"))
  assert sweep.run(many, console).stopped_by is None
  assert (stopped.directory / "result.json").exists()
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.exhaustive
def test_only_a_sweep_of_the_same_members_resumes_a_sweep(
  recipe, many, console, monkeypatch
):
  with monkeypatch.context() as patched:
    signal_at(patched, 3, maker=(sweep_members, "make_ensemble_train_step"))
    sweep.run(many, console)
  other = replace(many, num_seeds=3)
  with pytest.raises(ValueError, match="num_seeds is 2 there and 3 here"):
    sweep.run(other, console)
  with pytest.raises(ValueError, match="holds a sweep; --overwrite replaces"):
    train.run(recipe, console)
  with monkeypatch.context() as patched:
    alone = replace(recipe, run=f"{recipe.job.run}2")
    signal_at(patched, 3)
    train.run(alone, console)
  many = as_sweep(alone, num_seeds=2)
  with pytest.raises(ValueError, match="holds a single run; --overwrite"):
    sweep.run(many, console)


def test_a_finished_sweep_says_that_more_epochs_are_another_sweep(many):
  """A sweep cannot be extended."""
  directory, facts = Path(many.job.run), {SHA256: "0"}
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(
    json.dumps(recorded_flags(many) | facts)
  )
  (directory / "result.json").write_text("{}")
  with pytest.raises(ValueError, match="num_epochs is 1 there and 4 here"):
    open_run_dir(recorded_flags(replace(many, num_epochs=4)), facts).__enter__()
