"""What a training shows: a bar or lines, and events for TensorBoard."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import finalize

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

from experiments.analysis.states import is_gate, signals, trace_layers
from experiments.trainer.files import naming
from lstm_jax.cells.cell import Cell
from lstm_jax.language import LanguageParams
from lstm_jax.training import part_norms

# Where PyTorch is installed, tensorboardX imports it, in 5 s, for tensors that
# it is never given here. So PyTorch is hidden from it.
hidden = "torch" not in sys.modules
if hidden:
  sys.modules["torch"] = None  # type: ignore[assignment]
try:
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog
except ImportError:
  summary = None
finally:
  if hidden:
    del sys.modules["torch"]

LINE_EVERY = 10.0  # least seconds between progress lines outside a terminal
TAGS = {  # of the entries of a row of metrics.jsonl
  "train_loss": "loss/train",
  "val_loss": "loss/val",
  "test_loss": "loss/test",
  "grad_norm": "grad_norm/all",
  "lr": "lr",
  "tokens_per_second": "speed/tokens_per_second",
  "seconds": "speed/seconds",
  "skipped": "process/skipped_steps",
  "resident_mb": "process/resident_mb",
  "live_mb": "process/live_mb",
  "compilations": "process/compilations",
}
EXCERPT = 256  # validation tokens whose gates TensorBoard shows
CLOSED, OPEN = 0.1, 0.9  # a gate is closed below CLOSED, and open above OPEN
BINS = np.linspace(0, 1, 21)  # edges of a histogram's bins
weight_norms = jax.jit(part_norms)  # one program, not thirty


class TrainingBar:
  """Shows the step, loss, speed and remaining time of a training.

  It is a progress bar in a terminal. Elsewhere it is lines, at least LINE_EVERY
  seconds apart but for the last.

  Args:
    console: where it is shown.
    total: training steps of the whole training.
    unit: what a token is, in the singular.
    quiet: whether to show nothing.
  """

  def __init__(
    self, console: Console, total: int, unit: str, *, quiet: bool = False
  ):
    self._console, self._total, self._quiet = console, total, quiet
    self._unit = unit.replace("character", "char")
    self._start = self._shown = time.monotonic()
    # The pace is measured from the first update on: compilation is before it.
    self._first = 0  # its step
    self._bar = Progress(
      BarColumn(bar_width=None),
      MofNCompleteColumn(),
      TextColumn("{task.fields[text]}"),
      TimeRemainingColumn(compact=True),
      TextColumn("left"),
      console=console,
      expand=True,
      speed_estimate_period=3600,  # in seconds: updates may be minutes apart
      disable=quiet or not console.is_interactive,
      transient=True,
    )
    self._task = self._bar.add_task("", total=total, text="")

  def __enter__(self) -> "TrainingBar":
    self._bar.start()
    return self

  def __exit__(self, *error) -> None:
    self._bar.stop()

  def advance(self, step: int) -> None:
    """Move the bar, if there is one, after a training step."""
    if not self._bar.disable:
      self._bar.update(self._task, completed=step)

  def update(self, step: int, loss: float, rate: float) -> None:
    """Show the state after a training step.

    Args:
      step: training steps made.
      loss: nats per token of the last steps.
      rate: tokens per second.
    """
    text = f"{loss:.3f} nats/{self._unit}  {rate:,.0f} {self._unit}s/s"
    if self._console.is_interactive or self._quiet:
      self._bar.update(self._task, completed=step, text=text)
      return
    now = time.monotonic()
    if not self._first:
      self._first, self._start = step, now
      if step < self._total:
        return  # the pace is not known yet
    if now - self._shown >= LINE_EVERY or step == self._total:
      self._shown = now
      pace = (now - self._start) / max(1, step - self._first)
      left = timedelta(seconds=round(pace * (self._total - step)))
      line = f"{step}/{self._total}  {text}  {left} left"
      self._console.print(line, soft_wrap=True)


class TensorBoard:
  """Writes an event file for TensorBoard, if tensorboardX is installed.

  Each row of metrics.jsonl becomes scalars, with the norms of the gradient's
  parts. Each evaluation adds the norms of the weights' parts, the sample, and
  the gates on an excerpt of the validation text: their histograms, and the
  share below 0.1 and above 0.9, where a sigmoid saturates and its gradient is
  small.

  Events are on the disk when a method returns. The SummaryWriter of
  tensorboardX would leave them to a thread, which a full disk ends with a
  traceback, and the training would not hear of it.

  Args:
    directory: of the event files.
    cell: of every layer of the model.
    tokens: of the validation split, integers [N].
    step: the first training step of the file; TensorBoard drops what earlier
      files say of it and of later steps.

  Raises:
    OSError: the file cannot be written, as in every method; the error names the
      directory.
  """

  def __init__(
    self, directory: Path, cell: Cell, tokens: np.ndarray, step: int
  ):
    self._directory, self._cell = directory, cell
    self._excerpt = tokens[:EXCERPT]
    self._events: EventsWriter | None = None
    if summary is None:
      return
    with naming(directory):
      directory.mkdir(exist_ok=True)
      # TensorBoard reads files in the order of their names, which begin with
      # the second in which they are made.
      self._events = EventsWriter(f"{directory}/events", f".{step:09d}")
    finalize(self, _close, self._events)
    self._write(step, session_log=SessionLog(status=SessionLog.START))

  def row(
    self, row: Mapping[str, Any], grad_norms: Mapping[str, jax.Array]
  ) -> None:
    """Write a row of metrics.jsonl, and the norms of the gradient's parts."""
    if self._events:
      values = {TAGS[n]: row[n] for n in TAGS if row.get(n) is not None}
      self._write(row["step"], values | _norms("grad_norm", grad_norms))

  def evaluation(self, step: int, params: LanguageParams) -> None:
    """Write the norms of the weights, and summaries of the gates."""
    if not self._events:
      return
    values, histograms = _norms("weight_norm", weight_norms(params)), []
    layers, _ = trace_layers(self._cell, params, jnp.asarray(self._excerpt))
    for number, layer in enumerate(layers, start=1):
      for letter, signal in signals(self._cell, layer).items():
        if not is_gate(self._cell, letter):
          continue
        gate, name = np.ravel(signal), f"layer{number}_{letter}"
        values[f"gates_below_{CLOSED}/{name}"] = (gate < CLOSED).mean()
        values[f"gates_above_{OPEN}/{name}"] = (gate > OPEN).mean()
        histograms.append(summary.histogram(f"gates/{name}", gate, BINS))
    self._write(step, values, *histograms)

  def sample(self, step: int, title: str, text: str) -> None:
    """Write a sample, as a block of code in TensorBoard's Markdown."""
    if self._events:
      code = "".join(f"\n    {line}" for line in text.split("\n"))
      self._write(step, {}, summary.text("samples", f"{title}\n{code}"))

  def _write(
    self, step: int, values: Mapping[str, Any] = {}, *summaries, **fields
  ) -> None:
    event = Event(step=step, wall_time=time.time(), **fields)
    scalars = (summary.scalar(n, np.asarray(x)) for n, x in values.items())
    for each in (*scalars, *summaries):
      event.summary.MergeFrom(each)
    assert self._events
    with naming(self._directory):
      self._events.write_event(event)
      self._events.flush()


def _close(events: Any) -> None:
  with suppress(OSError):  # every event was flushed, or raised its error then
    events.close()


def _norms(name: str, norms: Mapping[str, jax.Array]) -> dict[str, Any]:
  return {f"{name}/{part}": n for part, n in jax.device_get(norms).items()}
