"""The logger of a training run, from its first state to its result."""

import json
import math
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.trainer import distributed, run_dir
from experiments.trainer.checkpoint import (
  Progress,
  Restored,
  carried_batch_size,
  describe,
  log_bytes,
  restore,
  truncate_logs,
)
from experiments.trainer.data import default_prompt
from experiments.trainer.display import TensorBoard, TrainingBar
from experiments.trainer.figures import draw_losses
from experiments.trainer.files import append, write_json
from experiments.trainer.format import (
  counted,
  format_loss,
  format_losses,
  print_sample,
  print_title,
)
from experiments.trainer.history import read_rows
from experiments.trainer.loop import Diverged
from experiments.trainer.memory import process_size
from experiments.trainer.run_dir import OpenedRun
from experiments.trainer.setup import TrainSetup, to_mesh, to_one_device
from experiments.trainer.trained import Trained
from lstm_jax.language import LanguageParams, sample, stateful_loss
from lstm_jax.training import (
  CheckpointError,
  CheckpointWriter,
  Metrics,
  TrainState,
  eval_params,
  list_checkpoints,
)
from lstm_jax.training.optimizer import MAX_SKIPPED

FINAL_SAMPLE_LENGTH = 1000  # tokens
LOG_EVERY = 10  # training steps that a row of metrics.jsonl averages, at most


class Best(NamedTuple):
  """The lowest validation loss so far."""

  val_loss: float  # nats per token; infinite before the first evaluation
  step: int  # 0 before the first evaluation
  params: Any  # on the host; None before the first evaluation


class RunLogger:
  """Writes a run's metrics, samples and checkpoints into its directory.

  At the end of its `with` block it draws loss.png and waits for the last
  checkpoint; only `conclude` may follow. If the block raises
  Diverged, an OSError or CheckpointError of its end, as on a full disk, is
  printed, and Diverged is raised.

  Args:
    directory: the run directory.
    setup: of the run.
    console: shows the progress and the samples, unless --quiet.
    is_writer: whether this process writes metrics and samples; of several,
      only the first does. All of them write checkpoints.

  Attributes:
    directory: the run directory.
    bar: of the progress; a context manager.
    step: training steps made.
    seconds: training time of all rows so far.
    skipped: training steps with a non-finite loss or gradient, in these rows.
    best: the lowest validation loss so far, and its parameters.
    val_losses: the validation loss of every evaluation so far.
  """

  def __init__(
    self,
    directory: Path,
    setup: TrainSetup,
    console: Console,
    *,
    is_writer: bool = True,
  ):
    self.directory, self.step = directory, 0
    self.seconds, self.skipped = 0.0, 0
    self.best = Best(math.inf, 0, None)
    self.val_losses: list[float] = []
    self._setup, self._console = setup, console
    self._is_writer = is_writer
    unit, quiet = setup.corpus.tokenizer.unit, setup.config.job.quiet
    self.bar = TrainingBar(console, setup.num_steps, unit, quiet=quiet)
    # (loss, grad_norm, num_tokens) of each step since the last row. They stay
    # on the device until a row needs them, so that no step waits for them.
    self._pending: list[Any] = []
    self._pending_seconds = 0.0
    self._started: float | None = None  # when the clock was started
    self._consecutive = 0  # skipped steps at the end of the rows so far
    self._grad_norms: dict[str, jax.Array] = {}  # of the last step
    self._evaluated = 0  # the step of the last evaluation
    self._tensorboard: TensorBoard | None = None
    self._checkpoints = CheckpointWriter(directory / run_dir.CHECKPOINTS)
    process_size()  # the first call begins to count compilations

  def __enter__(self) -> "RunLogger":
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    try:
      self._draw()
      self._checkpoints.close()
    except (OSError, CheckpointError) as failure:
      if not isinstance(error, Diverged):
        raise
      with suppress(OSError):  # the output may lie on the same full disk
        self._console.print(f"{failure}", soft_wrap=True, markup=False)

  def resume(self, restored: Restored | None) -> None:
    """Continue from a checkpoint, or anew if None; delete what is newer."""
    step = int(restored.state.step) if restored else 0
    self._checkpoints.delete_after(step)
    if self._is_writer:
      log_sizes = restored.progress.log_bytes if restored else {}
      truncate_logs(self.directory, log_sizes, self._console)
      self._tensorboard = TensorBoard(
        self.directory / run_dir.TENSORBOARD,
        self._setup.config.model.cell,
        self._setup.corpus.val.tokens,
        # A sample of the initial weights is logged at step 0.
        step + 1 if restored else 0,
      )
    if not restored:
      return
    self.step, progress = step, restored.progress
    self._console.print(f"resumed     after step {step}")
    self._pending = [*progress.pending]
    self._pending_seconds = progress.pending_seconds
    self.seconds = progress.seconds
    self.skipped, self._consecutive = progress.skipped
    self.val_losses = progress.val_losses
    if progress.best and restored.best_params:
      self.best = Best(*progress.best, restored.best_params)

  def start_clock(self) -> None:
    """Count the seconds from now on as those of training steps."""
    self._started = time.monotonic()

  def log_step(self, step: int, metrics: Metrics) -> None:
    """Add the metrics of a training step; write a row every LOG_EVERY steps.

    It first waits until the last checkpoint is on the disk, so only one step
    runs while a checkpoint is written. A kill during that step loses all steps
    since the checkpoint before the last; a later kill, those since the last.
    """
    self._checkpoints.wait()
    self.step, self._grad_norms = step, metrics.grad_norms
    self._pending.append(metrics[:3])
    if len(self._pending) == LOG_EVERY:
      self.flush()
      self.start_clock()

  def flush(self) -> None:
    """Write the row of the steps since the last row, and stop the clock.

    Raises:
      Diverged: too many consecutive losses or gradients are not finite.
    """
    if not self._pending:
      self._started = None  # no step has taken this time
      return
    losses, norms, num_tokens = np.array(self._stop_clock()).T
    finite = np.isfinite(losses) & np.isfinite(norms)
    self._count_skipped(losses, finite)
    loss, norm = (
      float(values[finite].mean()) if finite.any() else None
      for values in (losses, norms)
    )
    speed = float(num_tokens.sum() / self._pending_seconds)
    self.seconds += self._pending_seconds
    self._pending, self._pending_seconds = [], 0.0
    self.bar.update(self.step, math.nan if loss is None else loss, speed)
    update = max(1, self.step - self.skipped)  # 1 if all were skipped
    record = {
      "step": self.step,
      "train_loss": loss,
      "grad_norm": norm,
      "lr": float(self._setup.schedule(update - 1)),  # of the last update
      "tokens_per_second": round(speed),
      "seconds": round(self.seconds, 3),
    }
    if self.skipped:
      record["skipped"] = self.skipped
    self._write_row(record, self._grad_norms)

  def _stop_clock(self) -> list[list[float]]:
    """Wait for the pending steps, stop the clock, and return their metrics."""
    values = [[float(x) for x in jax.device_get(m)] for m in self._pending]
    if self._started is not None:
      self._pending_seconds += time.monotonic() - self._started
    self._started = None
    return values

  def _count_skipped(self, losses: np.ndarray, finite: np.ndarray) -> None:
    skips = self._setup.config.optimizer.nonfinite == "skip"
    limit = MAX_SKIPPED if skips else 0
    first = self.step - len(losses) + 1
    for step, (loss, fine) in enumerate(
      zip(losses, finite, strict=True), first
    ):
      self._consecutive = 0 if fine else self._consecutive + 1
      if self._consecutive > limit:
        problem = f"loss is {loss}"
        if math.isfinite(loss):
          problem = "gradient is not finite"
        most = f", and at most {limit} in a row may be skipped" if limit else ""
        raise Diverged(f"the {problem} at step {step}{most}")
    self.skipped += int((~finite).sum())

  def log_evaluation(self, val_loss: float, params: LanguageParams) -> bool:
    """Log the validation loss after a step; return whether it is the best.

    Raises:
      Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(val_loss):
      raise Diverged(
        f"the validation loss is {val_loss} after step {self.step}"
      )
    self._write_row({"step": self.step, "val_loss": val_loss} | process_size())
    if self._tensorboard:
      self._tensorboard.evaluation(self.step, params)
    self.val_losses.append(val_loss)
    self._evaluated = self.step
    if val_loss >= self.best.val_loss:
      return False
    self.best = Best(val_loss, self.step, jax.tree.map(np.array, params))
    return True

  def is_out_of_patience(self) -> bool:
    """Return whether --patience evaluations in a row were not the best."""
    patience, losses = self._setup.config.evaluation.patience, self.val_losses
    if not patience or not losses:
      return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience

  def save(self, state: TrainState) -> None:
    """Save a checkpoint: all that the run needs to resume, and its model."""
    pending, best = self._stop_clock(), self.best
    description: dict[str, Any] = {}  # that of the first process is saved
    if self._is_writer:
      progress = Progress(
        batch_size=carried_batch_size(state),
        val_losses=self.val_losses,
        best=(best.val_loss, best.step) if best.step else None,
        pending=pending,
        pending_seconds=self._pending_seconds,
        seconds=self.seconds,
        skipped=(self.skipped, self._consecutive),
        log_bytes=log_bytes(self.directory),
      )
      evaluated = self.val_losses and self._evaluated == self.step
      description = {
        **describe(self._setup.config, self._setup.corpus.tokenizer),
        "val_loss": self.val_losses[-1] if evaluated else None,
        "progress": progress._asdict(),
      }
    self._checkpoints.save(
      self.step, eval_params(state), description, state=state, best=best.step
    )

  def sample(
    self, title: str, params: LanguageParams, key: jax.Array, length: int
  ) -> None:
    """Draw a sample, print it unless --quiet, and append it to samples.txt."""
    if not self._is_writer:
      return
    config, tokenizer = self._setup.config, self._setup.corpus.tokenizer
    tokens = sample(
      self._setup.model,
      params,
      key,
      default_prompt(tokenizer),
      length,
      temperature=config.evaluation.temperature,
      suppress_tokens=tokenizer.unknown_tokens,
    )
    text = tokenizer.decode(tokens[0])
    if not config.job.quiet:
      print_title(title, self._console, align="left")
      print_sample(text, self._console)
    append(self.directory / run_dir.SAMPLES, f"=== {title} ===\n{text}\n\n")
    if self._tensorboard:
      self._tensorboard.sample(self.step, title, text)

  def sample_during_training(self, title: str, params: LanguageParams) -> None:
    """Draw, print and append a sample, by a key that depends on the step."""
    key = jax.random.fold_in(self._setup.keys.samples, self.step)
    self.sample(title, params, key, self._setup.config.evaluation.sample_length)

  def kept(self) -> str:
    """Return how a message names the checkpoint that the run has kept.

    It is that of the lowest validation loss, or where it has none, the newest.
    """
    saved = list_checkpoints(self.directory / run_dir.CHECKPOINTS)
    best = self.best.step
    step = best if best in saved else max(saved, default=0)
    return f"the checkpoint of step {step}" if step else "no checkpoint"

  def conclude(self, stopped_by: signal.Signals | None) -> str:
    """Print how the run has ended; finish it if nothing has stopped it.

    A finished run has a sample of its best weights, its test loss, if there is
    a test split, and result.json, which marks it as finished.

    Returns:
      A summary of its result; "" before the first evaluation.

    Raises:
      ValueError: the run was killed after its last step, and its best
        checkpoint is damaged.
    """
    if stopped_by:
      self._console.print(
        f"\n{stopped_by.name}: stopped after step {self.step}"
      )
    elif self.step < self._setup.num_steps:
      patience = self._setup.config.evaluation.patience
      self._console.print(
        f"\nstopped early after step {self.step} of {self._setup.num_steps}: "
        f"{counted(patience, 'evaluation')} in a row without a lower "
        "validation loss",
        soft_wrap=True,
      )
    if not self.best.step:
      if not stopped_by:
        raise ValueError(
          f"{self.directory} has made its last step and has no best "
          "checkpoint: --overwrite trains it anew"
        )
      return ""
    corpus = self._setup.corpus
    val = format_losses(self.best.val_loss, corpus.tokenizer, corpus.val.text)
    summary = f"best validation loss {val} at step {self.best.step}"
    if not stopped_by:
      summary += self._finish()
    if self.skipped:
      skipped = counted(self.skipped, "step")
      summary += f", {skipped} with a non-finite gradient skipped"
    drawn = "loss.png, " * (self.directory / run_dir.PICTURE).exists()
    return (
      f"{summary}, {self.seconds:.0f} s of training\n{self.directory} holds "
      f"config.json, metrics.jsonl, {drawn}samples.txt and checkpoints/"
    )

  def _finish(self) -> str:
    """Write the last sample and result.json; return what to say of the test.

    A test loss is written to metrics.jsonl and drawn into loss.png too.
    """
    setup, best = self._setup, self.best
    corpus, test_loss, said = setup.corpus, None, ""
    if corpus.test:
      test_loss = stateful_loss(setup.model, best.params, corpus.test.tokens)
      losses = format_losses(test_loss, corpus.tokenizer, corpus.test.text)
      said = f", test loss {losses}"
    title = f"best checkpoint, step {best.step}: validation "
    title += format_loss(best.val_loss, corpus.tokenizer)
    self.sample(title, best.params, setup.keys.samples, FINAL_SAMPLE_LENGTH)
    if test_loss is not None:
      self._write_row({"step": best.step, "test_loss": test_loss})
    record = {
      "step": best.step,
      "val_loss": best.val_loss,
      "test_loss": test_loss,
      "seconds": round(self.seconds, 3),
      "last_step": self.step,
      "stopped_early": self.step < setup.num_steps,
    }
    self._checkpoints.wait()  # a finished run has its last checkpoint
    if self._is_writer:
      write_json(self.directory / run_dir.RESULT, record)
      if test_loss is not None:
        self._draw()
    return said

  def _draw(self) -> None:
    """Draw loss.png, if there is a loss."""
    metrics = self.directory / run_dir.METRICS
    picture = self.directory / run_dir.PICTURE
    try:
      if self._is_writer and metrics.exists():
        unit = self._setup.corpus.tokenizer.unit
        draw_losses(read_rows(metrics), unit, picture)
    except (OSError, ValueError) as error:  # must not hide a worse error
      message = f"{run_dir.PICTURE} cannot be written: {error}"
      self._console.print(message, soft_wrap=True)

  def _write_row(
    self, record: dict[str, Any], norms: dict[str, jax.Array] | None = None
  ) -> None:
    if not self._is_writer:
      return
    line = json.dumps(record, allow_nan=False)
    append(self.directory / run_dir.METRICS, f"{line}\n")
    if self._tensorboard:
      self._tensorboard.row(record, norms or {})


def initial_state(
  setup: TrainSetup,
  logger: RunLogger,
  console: Console,
  opened: OpenedRun,
  pretrained: Trained | None,
) -> TrainState:
  """Return the state of the newest usable checkpoint, or the initial one.

  If the run starts from initial weights, a sample of them is drawn. On a mesh,
  the state is laid out as the training needs it.

  Args:
    setup: of the run.
    logger: of the run; it resumes at the step of the state.
    console: prints where the run starts.
    opened: the run directory, which says whether there is a run to resume.
    pretrained: has the initial weights; None for random ones.

  Raises:
    CheckpointError: there are checkpoints, and none can be used.
    ValueError: the processes see different checkpoints, or another process has
      raised an error.
  """
  restored = None
  if opened.resuming:
    with distributed.failing_together():
      restored = restore(opened.directory, setup.state_like, console)
    step = int(restored.state.step) if restored else 0
    distributed.check_same_checkpoint(opened.directory, step)
  with distributed.failing_together():
    logger.resume(restored)
  if restored:
    if opened.extended_from is not None:
      before, epochs = opened.extended_from, setup.config.batching.num_epochs
      how = f"by --patience={setup.config.evaluation.patience}"
      if epochs > before:
        how = f"from {counted(before, 'epoch')} to {epochs}"
      console.print(
        f"extended    {how}; the schedule of the learning rate now has "
        f"{setup.num_steps} steps",
        soft_wrap=True,
      )
    return to_mesh(setup, restored.state)
  if not pretrained:
    state = setup.make_state()
    params = to_one_device(setup, state.params)
    with distributed.failing_together():
      logger.sample_during_training("untrained", params)
    return state
  state = setup.make_state(pretrained.params)
  line = f"those of {setup.config.init_from}, step {pretrained.step}"
  if pretrained.val_loss is not None:
    loss = format_loss(pretrained.val_loss, pretrained.tokenizer)
    line += f", validation {loss}"
  console.print(f"weights     {line}", soft_wrap=True)
  params = to_one_device(setup, state.params)
  with distributed.failing_together():
    logger.sample_during_training(f"step 0, epoch 0.0: {line}", params)
  return state
