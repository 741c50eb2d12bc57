"""Train one configuration with several seeds and learning rates, all together.

  python -m experiments.sweep --num_seeds=8 --rate=3e-3 --rate=1e-2

trains eight seeds at each learning rate; without --rate, at --learning_rate. A
member of the sweep is one seed at one learning rate; all members train in one
program, which is compiled once. The cores of a CPU share the members
(--devices). The hyperparameters are flags, as in `experiments.train`; a sweep
refuses --init_from, --teacher, --patience, --asgd_patience, --nonfinite, --mesh
and --implementation. The seeds count up from --seed. If batches are random
(--random_offsets, --short_seq_prob), all members have those of --seed. If not,
each member equals the run that `experiments.train` makes with its seed and
learning rate, up to rounding. A test split (--test_fraction) is neither trained
on nor evaluated. The tables show each member's best validation loss, and mean
and standard deviation at each learning rate; result.json has every evaluation.

The checkpoints hold the state of all members, so that a sweep can be resumed
like a run, and the weights of the best member, for `experiments.sample` and the
other programs.
"""

import signal
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.cli import (
  collect_stop_requests,
  command_line,
  exit_status,
  launch,
  make_console,
)
from experiments.trainer import run_dir
from experiments.trainer.checkpoint import describe
from experiments.trainer.config import TrainConfig
from experiments.trainer.display import TrainingBar
from experiments.trainer.distributed import members_mesh, share_members
from experiments.trainer.files import write_json
from experiments.trainer.format import (
  counted,
  format_nats,
  number_table,
  print_table,
)
from experiments.trainer.loop import Diverged, Observer, fit
from experiments.trainer.memory import check_memory
from experiments.trainer.records import (
  config_from_flags,
  define_flags,
  replace,
  to_record,
)
from experiments.trainer.setup import TrainSetup, heading, make_setup
from experiments.trainer.sweep_members import (
  Member,
  SweepConfig,
  best_member,
  make_members,
  make_state,
  make_train_step,
  num_members,
  restore,
  save,
)
from lstm_jax.language import stateful_loss
from lstm_jax.training import (
  CheckpointWriter,
  Metrics,
  TrainState,
  each_member,
  eval_params,
  on_one_device,
)

# Flags of `experiments.train` that a sweep does not support.
UNSUPPORTED = (
  *("init_from", "teacher", "patience", "asgd_patience", "nonfinite"),
  *("mesh", "implementation"),
)


class Result(NamedTuple):
  """The outcome of a sweep."""

  directory: Path
  members: list[Member]
  seconds: float  # of the training steps
  stopped_by: signal.Signals | None  # the signal that stopped it early


def run(config: SweepConfig, console: Console) -> Result:
  """Train every member, print the tables, and write the run directory.

  Raises:
    ValueError: the corpus, the run directory or the configuration is not
      usable, the device has too little memory for the train states, or a flag
      is not supported by sweeps.
    Diverged: at the end, no member has a finite loss.
  """
  _check(config)
  # The learning rate is 1: each member multiplies its updates by its own rate.
  setup = make_setup(replace(config, learning_rate=1.0))
  # Check by one member's size first: a list of all might already be too large.
  check_memory(setup.state_like, num_members(config))
  members = make_members(config)
  rates = {one.learning_rate for one in members}
  initial_state = partial(make_state, setup, members)
  state_like = jax.eval_shape(initial_state)
  check_memory(state_like)
  mesh = members_mesh(config.job.devices, len(members))
  facts = {run_dir.SHA256: setup.corpus.sha256}  # for config.json
  with (
    run_dir.open_run_dir(run_dir.recorded_flags(config), facts) as opened,
    collect_stop_requests() as requests,  # KeyboardInterrupt may crash JAX
  ):
    directory, resuming, _ = opened
    console.print(
      f"{heading(setup)}\n"
      f"members     {len(members)}: {counted(config.num_seeds, 'seed')} at "
      f"each of {counted(len(rates), 'learning rate')}"
      f"{f', shared by {mesh.size} devices' if mesh else ''}\n"
      f"run         {directory}",
      soft_wrap=True,
    )
    restored = None
    if resuming:
      restored = restore(directory, members, state_like, console)
    # A run that was killed before its first checkpoint starts again.
    state, seconds = restored or (initial_state(), 0.0)
    if restored:
      console.print(f"resumed     after step {state.step}")
    unit, quiet = setup.corpus.tokenizer.unit, config.job.quiet
    bar = TrainingBar(console, setup.num_steps, unit, quiet=quiet)
    writer = CheckpointWriter(directory / run_dir.CHECKPOINTS)
    writer.delete_after(int(state.step))  # damaged ones that `restore` skipped
    observer = _Observer(setup, members, writer, bar, seconds)
    with closing(writer), bar:
      _, stopped_by = fit(
        make_train_step(setup, members, mesh),
        state,
        setup.epochs(),
        setup.num_steps,
        observer,
        evaluate_at=config.evaluation.is_due,
        stop_requests=requests,
      )
    result = Result(directory, members, observer.seconds, stopped_by)
    if not stopped_by:
      found = [one.to_json() for one in members]
      record = {"members": found, "seconds": round(observer.seconds, 3)}
      write_json(directory / run_dir.RESULT, record)
  _print_result(result, console)
  if not (stopped_by or best_member(members)):
    raise Diverged("every member of the sweep has diverged")
  return result


class _Observer(Observer):
  """Evaluates every member and saves checkpoints."""

  def __init__(
    self,
    setup: TrainSetup,
    members: list[Member],
    writer: CheckpointWriter,
    bar: TrainingBar,
    seconds: float,
  ):
    self.seconds = seconds  # of the training steps
    self._setup, self._members = setup, members
    self._writer, self._bar = writer, bar
    self._description = describe(setup.config, setup.corpus.tokenizer)
    epochs = setup.config.batching.num_epochs
    tokens = setup.corpus.train.tokens
    # Tokens that all members train on, in all epochs.
    self._num_tokens = len(members) * epochs * len(tokens)
    self._metrics: Metrics | None = None
    self._started: float | None = time.monotonic()  # None: the clock is stopped

  def after_step(self, step: int, metrics: Metrics) -> None:
    self._bar.advance(step)
    # Wait for the writer, so that at most one step is made before the last
    # checkpoint is on the disk: a kill loses at most the steps between two
    # checkpoints, and one more.
    self._writer.wait()
    self._metrics = metrics

  def evaluate(self, step: int, state: TrainState) -> TrainState:
    """Measure every member's validation loss."""
    assert self._metrics
    losses = np.asarray(jax.device_get(self._metrics.loss))  # of the members
    finite = losses[np.isfinite(losses)]
    loss = float(finite.mean()) if finite.size else np.nan
    self._stop_clock()
    num_tokens = self._num_tokens * step / self._setup.num_steps  # so far
    self._bar.update(step, loss, num_tokens / self.seconds)
    model, val = self._setup.model, self._setup.corpus.val
    weights = each_member(eval_params(state))
    for one, params in zip(self._members, weights, strict=True):
      nats = stateful_loss(model, params, val.tokens)
      one.val_losses.append((step, nats))
    return state

  def save(self, step: int, state: TrainState) -> None:
    del step
    jax.block_until_ready(state)
    self._stop_clock()
    whole = on_one_device(state)  # for `save` of `sweep_members`
    save(self._writer, self._description, self._members, whole, self.seconds)
    self._started = time.monotonic()

  def _stop_clock(self) -> None:
    """Add the time since the clock was started, and stop it."""
    if self._started is not None:
      self.seconds += time.monotonic() - self._started
    self._started = None


def _check(config: SweepConfig) -> None:
  """Raise ValueError for flags that are not supported."""
  record, default = to_record(config), to_record(TrainConfig())
  for name in UNSUPPORTED:
    if record[name] != default[name]:
      raise ValueError(
        f"a sweep does not support --{name}: it must be {default[name]!r}, "
        f"got {record[name]!r}"
      )


def _print_result(result: Result, console: Console) -> None:
  """Print the tables of the evaluated members, and how to sample the best."""
  evaluated = [one for one in result.members if one.val_losses]
  if result.stopped_by:
    console.print(f"\n{result.stopped_by.name}: stopped")
  if evaluated:
    print_table(member_table(evaluated), console)
    print_table(rate_table(evaluated), console)
  lines = [f"{result.seconds:.0f} s of training, saved in {result.directory}"]
  leader = best_member(result.members)
  if leader:
    command = command_line("sample", [f"--run={result.directory}"])
    lines.append(
      f"to sample from the best, seed {leader.seed} at learning rate "
      f"{leader.learning_rate}:\n  {command}"
    )
  console.print("\n".join(lines), soft_wrap=True)


def member_table(members: list[Member]) -> Table:
  """Return a table with a row for each member; each has been evaluated."""
  table = number_table("learning rate", "seed", "best", "at step", "last")
  for one in members:
    step, nats = one.best
    _, last = one.val_losses[-1]
    cells = f"{one.seed}", format_nats(nats), f"{step}", format_nats(last)
    table.add_row(f"{one.learning_rate}", *cells)
  return table


def rate_table(members: list[Member]) -> Table:
  """Return a table of the seeds' best losses, mean and std, at each rate."""
  table = number_table("learning rate", "seeds", "mean of the best", "std")
  for rate in dict.fromkeys(one.learning_rate for one in members):
    best = [one.best[1] for one in members if one.learning_rate == rate]
    with np.errstate(invalid="ignore"):  # of infinite losses
      deviation = f"{np.std(best, ddof=1):.4f}" if len(best) > 1 else ""
    mean = format_nats(float(np.mean(best)))
    table.add_row(f"{rate}", f"{len(best)}", mean, deviation)
  return table


def main() -> int:
  """Read the flags and run."""
  config = config_from_flags(SweepConfig(), FLAGS)
  config = share_members(config, num_members(config))
  console = make_console()
  result = run(config, console)
  return exit_status(
    "sweep", config, result.directory, result.stopped_by, console
  )


if __name__ == "__main__":
  FLAGS = define_flags(SweepConfig())
  launch(main)
