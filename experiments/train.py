"""Train a language model on a text and watch it learn to write.

  python -m experiments.train

trains a character-level LSTM on Shakespeare's poems, prints the validation loss
and a sample at every evaluation, and leaves the loss curve, the samples and the
checkpoints in a run directory under runs/. Every hyperparameter is a flag (see
--help), and recipes in experiments/recipes are read by --flagfile. Ctrl-C or
SIGTERM finishes the current training step, saves and stops; several processes
stop at the next evaluation or multiple of 50 steps. The program then prints the
command that resumes the run. After a kill, a run resumes at its last complete
checkpoint. experiments/cli.py lists the exit statuses.
"""

import signal
from pathlib import Path
from typing import NamedTuple

from absl import flags
from rich.console import Console

from experiments.cli import (
  collect_stop_requests,
  command_line,
  exit_status,
  launch,
  make_console,
)
from experiments.trainer import distributed, memory, run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import in_vocabulary
from experiments.trainer.distillation import Sources, make_epochs, read_sources
from experiments.trainer.format import format_loss
from experiments.trainer.logger import RunLogger, initial_state
from experiments.trainer.loop import (
  Diverged,
  Observer,
  Tracer,
  fit,
)
from experiments.trainer.records import config_from_flags, define_flags
from experiments.trainer.setup import (
  TrainSetup,
  heading,
  make_setup,
  to_one_device,
)
from lstm_jax.language import stateful_loss
from lstm_jax.training import (
  Metrics,
  TrainState,
  eval_params,
  is_nonmonotonic,
  start_average,
)

SUGGESTED_PROMPT = "Shall I"  # for experiments.sample


class Result(NamedTuple):
  """The outcome of a run."""

  directory: Path
  best_step: int  # 0 before the first evaluation
  val_loss: float  # the lowest, nats per token; ∞ before an evaluation
  seconds: float  # of training steps
  stopped_by: signal.Signals | None = None  # the signal that stopped it early
  signalled: signal.Signals | None = None  # a signal too late to stop it


def run(config: TrainConfig, console: Console, trace_steps: int = 0) -> Result:
  """Train, print the progress, and fill the run directory.

  The profiler traces `trace_steps` training steps, if any.

  Raises:
    ValueError: the corpus, the run directory or the configuration is not
      usable, or the device has too little memory.
    Diverged: a validation loss is not finite, or too often in a row, a training
      loss or gradient is not; the message says which checkpoint is kept.
    KeyboardInterrupt: Ctrl-C before the training, or a second one during it.
  """
  with distributed.failing_together():
    setup = make_setup(config)
    console.print(heading(setup), soft_wrap=True)
    # Before a run directory is made: too large a model leaves none behind.
    memory.check_setup(setup)
    sources = read_sources(setup, memory.host_memory())
  record = run_dir.recorded_flags(config)
  facts = {run_dir.SHA256: setup.corpus.sha256} | sources.facts()
  with (
    memory.one_line_if_out_of_memory(setup),
    distributed.open_shared_run_dir(record, facts) as opened,
    collect_stop_requests() as requests,  # KeyboardInterrupt may crash JAX
  ):
    return _train(setup, sources, opened, requests, console, trace_steps)


def _train(
  setup: TrainSetup,
  sources: Sources,
  opened: run_dir.OpenedRun,
  requests: list[signal.Signals],
  console: Console,
  trace_steps: int,
) -> Result:
  """Train in the run directory: a new run, or the one that is resumed."""
  directory = opened.directory
  console.print(f"run         {directory}", soft_wrap=True)
  with distributed.failing_together():
    logger = RunLogger(
      directory, setup, console, is_writer=distributed.is_first()
    )
  tracer = Tracer(directory / run_dir.PROFILE, trace_steps, console)
  try:
    with logger:
      state = initial_state(setup, logger, console, opened, sources.pretrained)
      with distributed.failing_together():
        epochs = make_epochs(setup, sources.teachers, console)
      with logger.bar, tracer:
        logger.start_clock()
        _, stopped_by = fit(
          setup.train_step,
          state,
          epochs,
          setup.num_steps,
          _Observer(setup, logger),
          evaluate_at=setup.config.evaluation.is_due,
          key=setup.keys.noise,
          stop_requests=requests,
          tracer=tracer,
        )
  except (Diverged, KeyboardInterrupt) as error:
    reason = error if isinstance(error, Diverged) else "interrupted"
    named = type(error)(f"{reason}; {logger.kept()} is kept in {directory}")
    if isinstance(named, Diverged) and requests:
      named.signalled = requests[-1]
    raise named from None
  summary = logger.conclude(stopped_by)
  if summary:
    prompt = [f"--prompt={SUGGESTED_PROMPT}"]
    known = in_vocabulary(setup.corpus.tokenizer, SUGGESTED_PROMPT)
    arguments = [f"--run={directory}", *(prompt if known else ())]
    console.print(
      f"\n{summary}; to sample from the model:\n"
      f"  {command_line('sample', arguments)}",
      soft_wrap=True,
    )
  late = requests[-1] if requests and not stopped_by else None
  step, loss = logger.best.step, logger.best.val_loss
  return Result(directory, step, loss, logger.seconds, stopped_by, late)


class _Observer(Observer):
  """Logs the training steps, evaluates the model and saves checkpoints."""

  def __init__(self, setup: TrainSetup, logger: RunLogger):
    self._setup, self._logger = setup, logger

  def after_step(self, step: int, metrics: Metrics) -> None:
    self._logger.log_step(step, metrics)

  def evaluate(self, step: int, state: TrainState) -> TrainState:
    """Measure the validation loss and draw a sample.

    Returns the state to continue with. If this evaluation starts NT-ASGD, its
    weights are averaged from now on.
    """
    config, setup, logger = self._setup.config, self._setup, self._logger
    logger.flush()
    params = to_one_device(setup, eval_params(state))
    val_loss = stateful_loss(setup.model, params, setup.corpus.val.tokens)
    val_loss = distributed.from_first_process(val_loss)
    is_best = logger.log_evaluation(val_loss, params)
    title = (
      f"step {step}, epoch {setup.epochs_made(step):.1f}: validation "
      f"{format_loss(val_loss, setup.corpus.tokenizer)}"
      f"{', the best so far' if is_best else ''}"
    )
    patience, average = config.averaging.asgd_patience, state.average
    if (
      patience
      and average
      and not int(average.num_averaged)  # the average has not started yet
      and is_nonmonotonic(logger.val_losses, patience)
    ):
      state = state._replace(average=start_average(average))
      title += "; from here on the weights are averaged"
    logger.sample_during_training(title, params)
    return state

  def stops_early(self) -> bool:
    return self._logger.is_out_of_patience()

  def save(self, step: int, state: TrainState) -> None:
    del step
    self._logger.save(state)
    self._logger.start_clock()


def main() -> int:
  """Run the program; return its exit status, above 128 after a signal."""
  distributed.join(**{flag.name: flag.value for flag in PROCESS_FLAGS})
  with distributed.failing_together():
    (config,) = distributed.share_batches(
      [config_from_flags(TrainConfig(), FLAGS)]
    )
    if distributed.from_first_process(DRY_RUN.value) != DRY_RUN.value:
      raise ValueError("every process must have --dry_run, or none")
  console = make_console()
  console.quiet = not distributed.is_first()
  if DRY_RUN.value and TRACE_STEPS.value:
    raise ValueError("--profile traces a run, and --dry_run makes none")
  if DRY_RUN.value:
    memory.dry_run(config, console)
    return 0
  result = run(config, console, TRACE_STEPS.value)
  return exit_status(
    "train", config, result.directory, result.stopped_by, console
  )


if __name__ == "__main__":
  FLAGS = define_flags(TrainConfig())
  PROCESS_FLAGS = define_flags(distributed.ProcessConfig(), group="process")
  DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Print the run's size and memory need, and exit."
  )
  TRACE_STEPS = flags.DEFINE_integer(
    "profile",
    0,
    "Training steps to trace into the run directory, after the first three.",
    lower_bound=0,
  )
  launch(main)
