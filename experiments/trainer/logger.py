"""What a training run says and writes while it goes on."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from experiments.cli import Diverged
from experiments.progress import TrainingBar
from experiments.trainer import run_dir
from experiments.trainer.checkpoint import (
  Progress,
  Restored,
  carried_streams,
  cut_logs,
  log_bytes,
  saved,
)
from experiments.trainer.claim import forget_previous
from experiments.trainer.config import CELLS
from experiments.trainer.health import health
from experiments.trainer.plot import draw
from experiments.trainer.tally import MetricBuffer
from experiments.trainer.tensorboard import TensorBoardWriter
from lstm_jax.language import LanguageModel, LanguageParams, Tokenizer, sample
from lstm_jax.training import Average, CheckpointWriter, Metrics, TrainState

LOG_EVERY = 10  # updates a row of metrics.jsonl


class Best(NamedTuple):
  """The best loss so far of what is watched: held-out or development text."""

  nats: float  # per token; infinite before there is one
  update: int  # after which it was measured; 0 before there is one
  params: Any  # on the host; None before there is one


class RunLogger:
  """Keeps a run's metrics, samples and checkpoints in its folder.

  Args:
    directory: of the run.
    console: what it says, it says here.
    bar: is told of the updates.
    description: of the model, for its checkpoints.
    vocabulary: of the run.
    watched: the text whose loss is watched, "held_out" or "development".
    piece: some of its tokens, integers [N], whose gates are looked at.
    quiet: whether to print no samples.

  Attributes:
    directory: of the run.
    name: of the loss that is watched, as it is shown.
    step: updates made.
    best: the best watched loss so far and its parameters.
    looks: every watched loss so far.
  """

  def __init__(
    self,
    directory: Path,
    console: Console,
    bar: TrainingBar,
    description: dict[str, Any],
    vocabulary: Tokenizer,
    watched: str,
    piece: np.ndarray,
    skips: int = 0,
    quiet: bool = False,
  ):
    self.directory = directory
    self._console = console
    self._bar = bar
    self._description = description
    self._vocabulary = vocabulary
    self._watched = watched
    self._tally = MetricBuffer(skips)
    self._quiet = quiet
    self.name = watched.replace("_", "-")
    self._writer = CheckpointWriter(directory / run_dir.CHECKPOINTS)
    cell = CELLS[description["model"]["cell"]]
    self._board = TensorBoardWriter(
      directory / run_dir.TENSORBOARD, cell, piece
    )
    self._norms: dict[str, jax.Array] = {}  # of the last update's gradient
    self._last_look: tuple[int, float] | None = None
    health()  # counts from here on
    self.looks: list[float] = []
    self.step = 0
    self.best = Best(math.inf, 0, None)

  @property
  def seconds(self) -> float:
    """Return the time spent on updates, without evaluation and sampling."""
    return self._tally.seconds

  @property
  def skipped(self) -> int:
    """Return how many updates were not finite."""
    return self._tally.skipped

  def go_on(self, restored: Restored | None) -> None:
    """Take up what a checkpoint holds, or nothing; forget what came after."""
    progress = restored.progress if restored else None
    cut_logs(self.directory, progress.bytes if progress else {}, self._console)
    self._writer.forget_after(int(restored.state.step) if restored else 0)
    self._board.begin(int(restored.state.step) + 1 if restored else 0)
    if not restored or not progress:
      return
    self.step = int(restored.state.step)
    self._console.print(f"goes on     after update {self.step}")
    self._tally.go_on(progress)
    self.looks = progress.looks
    if progress.best and restored.best:
      self.best = Best(*progress.best, restored.best)

  def update(self, step: int, metrics: Metrics) -> None:
    """Take the metrics of one update; report every LOG_EVERY updates.

    A checkpoint is written while one update is computed; the next one waits, so
    that a kill costs one interval between checkpoints, and that update.
    """
    self._writer.wait()
    self.step = step
    loss, norm, num_tokens, self._norms = metrics
    self._tally.add(loss, norm, num_tokens)
    if len(self._tally) == LOG_EVERY:
      self.report(step)
      self.start_clock()

  def report(self, step: int) -> None:
    """Report the updates since the last report, and stop the clock.

    Raises:
      Diverged: a loss or a gradient is NaN or infinite, and is not to be
        skipped, or not so many in a row.
    """
    told = self._tally.take(step)
    if not told:
      return
    self._bar.update(step, told.loss, told.rate)
    finite = math.isfinite(told.loss)
    row = {
      "step": step,
      "loss": told.loss if finite else None,
      "grad_norm": told.grad_norm if finite else None,
      f"{self._vocabulary.unit}s_per_second": round(told.rate),
      "seconds": round(self.seconds, 3),
    }
    self._record(**row | ({"skipped": self.skipped} if self.skipped else {}))

  def start_clock(self) -> None:
    """Count the seconds from now on as those of updates."""
    self._tally.start_clock()

  def watch(self, step: int, nats: float, params: LanguageParams) -> bool:
    """Take a watched loss; return whether it is the best so far.

    Raises:
      Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(nats):
      raise Diverged(f"the {self.name} loss is {nats} after update {step}")
    self._record(step=step, **{self._watched: nats}, **health())
    self._board.look(step, params)
    self.looks.append(nats)
    self._last_look = step, nats
    if nats >= self.best.nats:
      return False
    self.best = Best(nats, step, jax.tree.map(np.array, params))
    return True

  def save(
    self,
    step: int,
    params: LanguageParams,
    state: TrainState,
    average: Average | None,
  ) -> None:
    """Save all that the run needs to go on from here, and its parameters."""
    best = self.best
    progress = Progress(
      batch_size=carried_streams(state),
      averaging=average is not None,
      looks=self.looks,
      best=(best.nats, best.update) if best.update else None,
      bytes=log_bytes(self.directory),
      **self._tally.kept(),
    )
    last, nats = self._last_look or (0, None)
    description = self._description | {
      "held_out": nats if last == step else None,  # or development
      "progress": progress._asdict(),
    }
    tree = saved(state, average)
    self._writer.save(step, params, description, state=tree, best=best.update)

  def sample(
    self,
    title: str,
    model: LanguageModel,
    params: LanguageParams,
    key: jax.Array,
    length: int,
    temperature: float,
  ) -> None:
    """Draw a sample, print it unless quiet, and add it to samples.txt."""
    vocabulary = self._vocabulary
    tokens = sample(
      model,
      params,
      key,
      run_dir.default_prompt(vocabulary),
      length,
      temperature=temperature,
      never=vocabulary.unknown_tokens,
    )
    text = vocabulary.decode(tokens[0])
    if not self._quiet:
      self._console.print(Rule(title, align="left"))
      self._console.print(Text(text), soft_wrap=True)
    path = self.directory / run_dir.SAMPLES
    run_dir.append(path, f"=== {title} ===\n{text}\n\n")
    self._board.sample(self.step, title, text)

  def close(self) -> None:
    """Draw the curve and wait for the checkpoint."""
    try:
      if (self.directory / run_dir.METRICS).exists():
        draw(self.directory, self._vocabulary.unit)
    except (OSError, ValueError) as error:  # which hides nothing worse
      self._console.print(f"{run_dir.PICTURE} cannot be written: {error}")
    self._writer.close()
    if self.best.update:
      forget_previous(self.directory)

  def final(self, held_out: float) -> None:
    """Take the held-out loss of the best, where the development text chose."""
    self._record(step=self.best.update, held_out=held_out)

  def finish(self) -> None:
    """Write what the run ends with: it is not to go on."""
    record = {
      "step": self.best.update,
      self._watched: self.best.nats,
      "seconds": round(self.seconds, 3),
    }
    run_dir.write_json(self.directory / run_dir.RESULT, record)

  def _record(self, **row: Any) -> None:
    line = json.dumps(row, allow_nan=False)
    run_dir.append(self.directory / run_dir.METRICS, line + "\n")
    self._board.row(row, self._norms if "loss" in row else {})
