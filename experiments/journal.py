"""What a training run says and writes while it goes on."""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from experiments import distributed, run_folder
from experiments.plot import draw
from experiments.program import Diverged
from experiments.progress import TrainingBar
from lstm_jax.language import LanguageModel, LanguageParams, Tokenizer, sample
from lstm_jax.training import CheckpointWriter, Metrics

LOG_EVERY = 10  # updates a row of metrics.jsonl


class Best(NamedTuple):
  """The best loss so far of what is watched: held-out or development text."""

  nats: float  # per token; infinite before there is one
  update: int  # after which it was measured; 0 before there is one
  params: LanguageParams  # on the host; before that, untrained


class Journal:
  """Keeps a run's metrics, samples and best checkpoint in its folder.

  Attributes:
    best: the best watched loss so far and its parameters.
    seconds: time spent on updates, without evaluation and sampling.
  """

  def __init__(
    self,
    folder: Path,
    console: Console,
    bar: TrainingBar,
    untrained: LanguageParams,
    description: dict[str, Any],
    vocabulary: Tokenizer,
    watched: str = "held_out",
  ):
    self._folder = folder
    self._console = console
    self._bar = bar
    self._description = description
    self._vocabulary = vocabulary
    self._watched = watched
    self._writer = CheckpointWriter(folder / run_folder.CHECKPOINTS)
    self._pending: list[Metrics] = []
    self._mark = time.monotonic()
    self.seconds = 0.0
    self.best = Best(math.inf, 0, untrained)

  def update(self, step: int, metrics: Metrics) -> None:
    """Take the metrics of one update; report every LOG_EVERY updates."""
    self._pending.append(metrics)
    if len(self._pending) == LOG_EVERY:
      self.report(step)

  def report(self, step: int) -> None:
    """Report the updates since the last report.

    Raises:
      Diverged: the loss of one of them is NaN or infinite.
    """
    if not self._pending:
      return
    pending = np.array([jax.device_get(m) for m in self._pending])
    losses, norms, predictions = pending.T
    elapsed = time.monotonic() - self._mark
    self.seconds += elapsed
    wrong = np.flatnonzero(~np.isfinite(losses))
    if wrong.size:
      first = int(wrong[0])
      at = step - len(losses) + 1 + first
      raise Diverged(f"the loss is {losses[first]} at update {at}")
    loss, norm = float(losses.mean()), float(norms.mean())
    rate = predictions.sum() / elapsed
    self._bar.update(step, loss, rate)
    speed = {f"{self._vocabulary.unit}s_per_second": round(rate)}
    self._record(
      step=step,
      loss=loss,
      gradient_norm=norm if math.isfinite(norm) else None,
      **speed,
      seconds=round(self.seconds, 3),
    )
    self._pending = []
    self.resume()

  def resume(self) -> None:
    """Start the clock of the updates again."""
    self._mark = time.monotonic()

  def watch(self, step: int, nats: float, params: LanguageParams) -> bool:
    """Take a watched loss; save the parameters if it is the best so far.

    Raises:
      Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(nats):
      name = self._watched.replace("_", "-")
      raise Diverged(f"the {name} loss is {nats} after update {step}")
    self._record(step=step, **{self._watched: nats})
    if nats >= self.best.nats:
      return False
    self.best = Best(nats, step, jax.tree.map(np.asarray, params))
    description = self._description | {"held_out": nats}  # or development
    self._writer.save(step, self.best.params, description)
    return True

  def sample(
    self,
    title: str,
    model: LanguageModel,
    params: LanguageParams,
    key: jax.Array,
    length: int,
    temperature: float,
  ) -> None:
    """Draw a sample, print it and add it to samples.txt."""
    vocabulary = self._vocabulary
    tokens = sample(
      model,
      params,
      key,
      run_folder.default_prompt(vocabulary),
      length,
      temperature=temperature,
      never=vocabulary.stand_ins,
    )
    text = vocabulary.decode(tokens[0])
    self._console.print(Rule(title, align="left"))
    self._console.print(Text(text), soft_wrap=True)
    path = self._folder / run_folder.SAMPLES
    run_folder.append(path, f"=== {title} ===\n{text}\n\n")

  def close(self) -> None:
    """Wait for the checkpoint and draw the curve."""
    self._writer.close()
    if not distributed.is_first():
      return
    if self.best.update:
      run_folder.forget_previous(self._folder)
    if (self._folder / run_folder.METRICS).exists():
      draw(self._folder, self._vocabulary.unit)

  def final(self, held_out: float) -> None:
    """Take the held-out loss of the best, where the development text chose."""
    self._record(step=self.best.update, held_out=held_out)

  def _record(self, **row: Any) -> None:
    line = json.dumps(row, allow_nan=False)
    run_folder.append(self._folder / run_folder.METRICS, line + "\n")
