"""The logger of a training run: metrics, samples and checkpoints."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import (
  Progress,
  Restored,
  carried_batch_size,
  describe,
  log_bytes,
  truncate_logs,
)
from experiments.trainer.data import default_prompt
from experiments.trainer.errors import Diverged
from experiments.trainer.files import append, write_json
from experiments.trainer.format import print_sample, print_title
from experiments.trainer.memory import process_size
from experiments.trainer.metric_buffer import MetricBuffer
from experiments.trainer.setup import TrainSetup
from experiments.trainer.tensorboard import TensorBoardWriter
from lstm_jax.language import LanguageParams, sample
from lstm_jax.training import (
  CheckpointWriter,
  Metrics,
  TrainState,
  eval_params,
)
from lstm_jax.training.optimizer import MAX_SKIPPED

LOG_EVERY = 10  # training steps that a row of metrics.jsonl averages, at most
EXCERPT = 256  # validation tokens whose gates TensorBoard shows


class Best(NamedTuple):
  """The lowest validation loss so far."""

  val_loss: float  # nats per token; infinite before the first evaluation
  step: int  # 0 before the first evaluation
  params: Any  # on the host; None before the first evaluation


class RunLogger:
  """Writes a run's metrics, samples and checkpoints into its directory.

  Args:
    directory: the run directory.
    setup: of the run.
    console: prints the samples.
    show_progress: is called with every row of training metrics: the step, the
      mean loss of the row in nats per token, and the tokens per second.
    is_writer: whether this process writes metrics and samples; of several,
      only the first does. All of them write checkpoints.

  Attributes:
    directory: the run directory.
    buffer: metrics that wait for a row, and the time of the training steps.
    step: training steps made.
    best: the lowest validation loss so far, and its parameters.
    val_losses: the validation loss of every evaluation so far.
  """

  def __init__(
    self,
    directory: Path,
    setup: TrainSetup,
    console: Console,
    show_progress: Callable[[int, float, float], None],
    *,
    is_writer: bool = True,
  ):
    self.directory, self.step = directory, 0
    self.best = Best(math.inf, 0, None)
    self.val_losses: list[float] = []
    self._setup = setup
    self._console, self._show_progress = console, show_progress
    config = setup.config
    skips = config.optimizer.nonfinite == "skip"
    self.buffer = MetricBuffer(MAX_SKIPPED if skips else 0)
    self._grad_norms: dict[str, jax.Array] = {}  # of the last step
    self._last_evaluation: tuple[int, float] | None = None
    self._is_writer = is_writer
    self._tensorboard = TensorBoardWriter(
      directory / run_dir.TENSORBOARD,
      config.model.cell,
      setup.corpus.val.tokens[:EXCERPT],
    )
    self._checkpoints = CheckpointWriter(directory / run_dir.CHECKPOINTS)
    process_size()  # the first call begins to count compilations

  def resume(self, restored: Restored | None) -> None:
    """Continue from a checkpoint, or anew if None; delete what is newer."""
    step = int(restored.state.step) if restored else 0
    self._checkpoints.delete_after(step)
    if self._is_writer:
      log_sizes = restored.progress.log_bytes if restored else {}
      truncate_logs(self.directory, log_sizes, self._console)
      # A sample of the initial weights is logged at step 0.
      self._tensorboard.begin(step + 1 if restored else 0)
    if not restored:
      return
    self.step, progress = step, restored.progress
    self._console.print(f"resumed     after step {step}")
    self.buffer.restore(progress)
    self.val_losses = progress.val_losses
    if progress.best and restored.best_params:
      self.best = Best(*progress.best, restored.best_params)

  def log_step(self, step: int, metrics: Metrics) -> None:
    """Add the metrics of a training step; write a row every LOG_EVERY steps.

    It first waits until the last checkpoint is on the disk, so only one step
    runs while a checkpoint is written. A kill during that step loses all steps
    since the checkpoint before the last; a later kill, those since the last.
    """
    self._checkpoints.wait()
    self.step, self._grad_norms = step, metrics.grad_norms
    self.buffer.add(metrics)
    if len(self.buffer) == LOG_EVERY:
      self.flush()
      self.buffer.start_clock()

  def flush(self) -> None:
    """Write the row of the steps since the last row, and stop the clock.

    Raises:
      Diverged: too many consecutive losses or gradients are not finite.
    """
    row = self.buffer.take(self.step)
    if not row:
      return
    self._show_progress(self.step, row.train_loss, row.tokens_per_second)
    finite = math.isfinite(row.train_loss)
    update = max(1, self.step - self.buffer.skipped)  # 1 if all were skipped
    record = {
      "step": self.step,
      "train_loss": row.train_loss if finite else None,
      "grad_norm": row.grad_norm if finite else None,
      "lr": float(self._setup.schedule(update - 1)),  # of the last update
      "tokens_per_second": round(row.tokens_per_second),
      "seconds": round(self.buffer.seconds, 3),
    }
    if self.buffer.skipped:
      record["skipped"] = self.buffer.skipped
    self._write_row(record)

  def log_evaluation(self, val_loss: float, params: LanguageParams) -> bool:
    """Log the validation loss after a step; return whether it is the best.

    Raises:
      Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(val_loss):
      raise Diverged(
        f"the validation loss is {val_loss} after step {self.step}"
      )
    record = {"step": self.step, "val_loss": val_loss} | process_size()
    self._write_row(record)
    self._tensorboard.evaluation(self.step, params)
    self.val_losses.append(val_loss)
    self._last_evaluation = self.step, val_loss
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
    buffered = self.buffer.to_progress()  # stops the clock
    description: dict[str, Any] = {}  # that of the first process is saved
    if self._is_writer:
      description = self._describe(state, buffered)
    params, best = eval_params(state), self.best.step
    self._checkpoints.save(
      self.step, params, description, state=state, best=best
    )

  def _describe(
    self, state: TrainState, buffered: dict[str, Any]
  ) -> dict[str, Any]:
    """Return the description of a checkpoint of this step."""
    best = self.best
    progress = Progress(
      batch_size=carried_batch_size(state),
      val_losses=self.val_losses,
      best=(best.val_loss, best.step) if best.step else None,
      log_bytes=log_bytes(self.directory),
      **buffered,
    )
    evaluated, val_loss = self._last_evaluation or (0, None)
    return describe(self._setup.config, self._setup.corpus.tokenizer) | {
      "val_loss": val_loss if evaluated == self.step else None,
      "progress": progress._asdict(),
    }

  def sample(
    self, title: str, params: LanguageParams, key: jax.Array, length: int
  ) -> None:
    """Draw a sample, print it unless --quiet, and append it to samples.txt."""
    if not self._is_writer:
      return
    tokenizer = self._setup.corpus.tokenizer
    tokens = sample(
      self._setup.model,
      params,
      key,
      default_prompt(tokenizer),
      length,
      temperature=self._setup.config.evaluation.temperature,
      suppress_tokens=tokenizer.unknown_tokens,
    )
    text = tokenizer.decode(tokens[0])
    if not self._setup.config.job.quiet:
      print_title(title, self._console, align="left")
      print_sample(text, self._console)
    append(self.directory / run_dir.SAMPLES, f"=== {title} ===\n{text}\n\n")
    self._tensorboard.sample(self.step, title, text)

  def sample_during_training(self, title: str, params: LanguageParams) -> None:
    """Draw, print and append a sample, by a key that depends on the step."""
    key = jax.random.fold_in(self._setup.keys.samples, self.step)
    self.sample(title, params, key, self._setup.config.evaluation.sample_length)

  def finish(self, test_loss: float | None) -> None:
    """Write result.json, which marks the run as finished.

    A test loss is written to metrics.jsonl and drawn into loss.png too.
    """
    if test_loss is not None:
      self._write_row({"step": self.best.step, "test_loss": test_loss})
    record = {
      "step": self.best.step,
      "val_loss": self.best.val_loss,
      "test_loss": test_loss,
      "seconds": round(self.buffer.seconds, 3),
      "last_step": self.step,
      "stopped_early": self.step < self._setup.num_steps,
    }
    self._checkpoints.wait()  # a finished run has its last checkpoint
    if self._is_writer:
      write_json(self.directory / run_dir.RESULT, record)
      if test_loss is not None:
        self._draw()

  def close(self) -> None:
    """Draw loss.png and wait for the last checkpoint.

    Only `sample` and `finish` may follow.
    """
    if self._is_writer:
      self._draw()
    self._checkpoints.close()

  def _draw(self) -> None:
    """Draw loss.png, if there is a loss."""
    try:
      if (self.directory / run_dir.METRICS).exists():
        from experiments.trainer.plot import draw  # imports matplotlib

        draw(self.directory, self._setup.corpus.tokenizer.unit)
    except (OSError, ValueError) as error:  # must not hide a worse error
      message = f"{run_dir.PICTURE} cannot be written: {error}"
      self._console.print(message, soft_wrap=True)

  def _write_row(self, record: dict[str, Any]) -> None:
    if not self._is_writer:
      return
    line = json.dumps(record, allow_nan=False)
    append(self.directory / run_dir.METRICS, line + "\n")
    norms = self._grad_norms if "train_loss" in record else {}
    self._tensorboard.row(record, norms)
