"""Sweeps: their members and tables, what they refuse, and how they resume."""

import json
import math
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import sweep, train
from experiments.trainer import display, run_dir, sweep_members
from experiments.trainer.data import read_corpus
from experiments.trainer.loop import Diverged
from experiments.trainer.records import from_record, replace, to_record
from experiments.trainer.run_dir import SHA256, open_run_dir, recorded_flags
from experiments.trainer.sweep_members import Member, SweepConfig, make_members
from experiments.trainer.trained import load
from lstm_jax.language import stateful_loss
from lstm_jax.training import list_checkpoints
from tests.experiments.trainer.resuming import (
  last_checksums,
  read_rows,
  signal_at,
)
from tests.processes import as_flags, run_program


def as_sweep(config, **changes):
  """Return a SweepConfig with the flags of a TrainConfig, but for `changes`."""
  record = to_record(SweepConfig()) | to_record(config)
  return replace(from_record(SweepConfig(), record), **changes)


@pytest.fixture
def recipe(config):
  return replace(
    config, seed=4, ema_decay=0.9, output_dropout=0.2, eval_every=15
  )


@pytest.fixture
def many(recipe):
  """A sweep of four members: a rate that is given twice counts once."""
  return as_sweep(recipe, num_seeds=2, rate=(0.005, 0.03, 0.005))


@pytest.mark.exhaustive
def test_members_are_the_runs_of_their_seeds_and_rates(recipe, many, console):
  config = recipe
  result = sweep.run(many, console)
  named = [(one.seed, one.learning_rate) for one in result.members]
  assert named == [(4, 0.005), (5, 0.005), (4, 0.03), (5, 0.03)]
  record = json.loads((Path(config.job.run) / "result.json").read_text())
  for one, saved in zip(result.members, record["members"], strict=True):
    # Each 15th step, EARLY_STEPS and the last.
    assert [step for step, _ in one.val_losses] == [10, 15, 30, 45, 47]
    assert saved["val_losses"] == [list(pair) for pair in one.val_losses]
  for index in (0, 3):
    one = result.members[index]
    alone = replace(
      config,
      seed=one.seed,
      learning_rate=one.learning_rate,
      run=f"{config.job.run}{index}",
    )
    train.run(alone, console)
    rows = read_rows(alone.job.run)
    expected = [(r["step"], r["val_loss"]) for r in rows if "val_loss" in r]
    # In float32, after 47 training steps.
    assert np.allclose(one.val_losses, expected, rtol=0, atol=2e-5)
  assert abs(result.members[0].best[1] - result.members[1].best[1]) > 1e-3
  best = min(result.members, key=lambda one: one.best[1])
  trained = load(Path(config.job.run))
  assert (trained.step, trained.val_loss) == best.best
  val = read_corpus(config.data).val
  again = stateful_loss(trained.model, trained.params, val.tokens)
  assert abs(again - trained.val_loss) < 1e-6


@pytest.mark.exhaustive
def test_a_sweep_whose_members_all_diverge_ends_without_a_best(config, console):
  diverging = as_sweep(config, num_seeds=2, rate=(1e30,))
  with pytest.raises(Diverged, match="every member of the sweep has diverged"):
    sweep.run(diverging, console)
  result = json.loads((Path(config.job.run) / "result.json").read_text())
  for one in result["members"]:
    assert [loss for _, loss in one["val_losses"]][-1] is None
  assert "to sample from" not in console.file.getvalue()


def test_members_are_not_listed_before_their_memory_is_checked(
  many, console, monkeypatch
):
  assert sweep_members.num_members(many) == len(make_members(many)) == 4
  no_rate = replace(many, rate=())
  assert sweep_members.num_members(no_rate) == len(make_members(no_rate)) == 2
  monkeypatch.setattr(sweep, "make_members", None)  # is not called
  end = "the members of a sweep, or on a CPU --devices"
  with pytest.raises(ValueError, match=f"^out of memory: .*, {end}$"):
    sweep.run(replace(many, num_seeds=2**31 - 1), console)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_resumed_sweep_says_that_its_best_weights_are_lost(
  config, console, monkeypatch, garbage_collected
):
  config = as_sweep(config, num_seeds=2, rate=(0.03,), eval_every=10)
  with monkeypatch.context() as patched:
    signal_at(patched, 23, maker=(sweep_members, "make_ensemble_train_step"))
    directory = sweep.run(config, console).directory
  # The checkpoint of step 20 has the lowest loss so far: cut off its weights.
  for path in directory.glob("checkpoints/20/params/**/d/*"):
    path.write_bytes(path.read_bytes()[:-20])
  sweep.run(config, console)
  shown = console.file.getvalue()
  assert "resumed     after step 23" in shown
  assert "the best weights, of step 20 and a loss of" in shown


def test_the_help_and_the_docs_name_what_a_sweep_does_not_support():
  docs = Path(__file__).parents[3] / "docs" / "running.md"
  section = docs.read_text(encoding="utf-8").split("## Several seeds and ")[1]
  (listed,) = re.findall(r"What a sweep does not do\s\(([^)]*)\)", section)
  assert re.findall(r"--(\w+)", listed) == [*sweep.UNSUPPORTED]
  (refused,) = re.findall(r"a sweep\srefuses ([^.]*)\.", sweep.__doc__)
  assert re.findall(r"--(\w+)", refused) == [*sweep.UNSUPPORTED]


@pytest.mark.exhaustive
def test_the_bar_of_a_sweep_moves_at_every_step_and_shows_its_speed(
  many, console, monkeypatch
):
  steps, shown = [], []
  for name, values in (("advance", steps), ("update", shown)):
    monkeypatch.setattr(
      display.TrainingBar,
      name,
      lambda bar, *given, values=values: values.append(given),
    )
  result = sweep.run(many, console)
  assert steps == [(step,) for step in range(1, 48)]
  assert [step for step, *_ in shown] == [10, 15, 30, 45, 47]
  assert all(0 < loss < 5 for _, loss, _ in shown)
  *_, (*_, speed) = shown  # the last one is of the whole training
  num_tokens = len(read_corpus(many.data).train.tokens)
  assert abs(speed * result.seconds - 4 * num_tokens) < 1e-6 * num_tokens


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


def test_the_tables_have_each_member_and_the_deviation_at_each_rate(console):
  last = {(0, 0.1): 1.5, (1, 0.1): 1.75, (0, 0.1000001): math.nan}
  members = [
    Member(seed, rate, [(10, 1.9), (20, nats)])
    for (seed, rate), nats in last.items()
  ]
  members += [Member(seed, 0.2, [(1, math.inf)]) for seed in (0, 1)]
  assert members[2].best == (10, 1.9)  # a loss that is not finite is not best
  console.print(sweep.member_table(members))
  console.print(sweep.rate_table(members))
  rows = [line.split() for line in console.file.getvalue().splitlines()]
  assert ["0.1", "0", "1.5000", "20", "1.5000"] in rows
  assert ["0.1", "1", "1.7500", "20", "1.7500"] in rows
  assert ["0.1000001", "0", "1.9000", "10", "nan"] in rows
  deviation = math.sqrt(2 * 0.125**2)
  assert ["0.1", "2", "1.6250", f"{deviation:.4f}"] in rows
  assert ["0.1000001", "1", "1.9000"] in rows
  assert ["0.2", "2", "inf", "nan"] in rows


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"learning_rate": 0.0}, "learning_rate must be .* got 0"),
    ({"rate": (0.0,)}, r"rate must be in \(0, inf\), got \(0\.0,\)"),
    ({"rate": (math.inf,)}, r"rate must be in \(0, inf\), got \(inf,\)"),
    ({"ema_decay": 0.0, "asgd_patience": 2}, "--asgd_patience: .* 0, got 2"),
    (
      {"mesh": "data:1"},
      "--mesh: it must be '', got 'data:1'",
    ),
    ({"nonfinite": "skip"}, "--nonfinite: it must be 'stop', got 'skip'"),
    (
      {"implementation": "mosaic_gpu"},
      "--implementation: it must be None,",
    ),
    ({"seed": 2**32}, r"seed must be in \[0, 2147483647\]"),
    (
      {"seed": 2**31 - 1, "num_seeds": 2},
      "last seed must .* 2147483647",
    ),
    ({"devices": "4"}, "--devices must be at most 1, .* got 4"),
  ],
)
def test_what_a_sweep_does_not_support_is_an_error_that_names_it(
  changes, message, many, console
):
  with pytest.raises(ValueError, match=message):
    sweep.run(replace(many, **changes), console)
  assert not Path(many.job.run).exists()
