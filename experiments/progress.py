"""Progress: a bar in a terminal, a line every few seconds elsewhere.

A terminal of a build server (CI is set) is none: its log keeps every frame.
`program.plain_console` decides what is one.
"""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

LINE_EVERY = 10.0  # seconds


class TrainingBar:
  """Shows how far a run is, its loss, its speed and the time left.

  Quiet, it shows nothing.
  """

  def __init__(
    self, console: Console, total: int, unit: str, *, quiet: bool = False
  ):
    self._console = console
    self._total = total
    self._quiet = quiet
    self._unit = unit.replace("character", "char")
    self._start = self._shown = time.monotonic()
    self._first = 0
    self._bar = Progress(
      BarColumn(bar_width=None),
      MofNCompleteColumn(),
      TextColumn("{task.fields[text]}"),
      TimeRemainingColumn(compact=True),
      TextColumn("left"),
      console=console,
      disable=quiet or not console.is_interactive,
      transient=True,
    )
    self._task = self._bar.add_task("", total=total, text="")

  def __enter__(self) -> "TrainingBar":
    self._bar.start()
    return self

  def __exit__(self, *error) -> None:
    self._bar.stop()

  def update(self, step: int, loss: float, rate: float) -> None:
    """Show the state after `step` updates.

    Args:
      step: updates made.
      loss: nats per token of the last updates.
      rate: tokens per second.
    """
    if self._quiet:
      return
    text = f"{loss:.3f} nats/{self._unit}  {rate:,.0f} {self._unit}s/s"
    if self._console.is_interactive:
      self._bar.update(self._task, completed=step, text=text)
      return
    now = time.monotonic()
    if not self._first:
      self._first, self._start = step, now
    elif now - self._shown >= LINE_EVERY or step == self._total:
      self._shown = now
      pace = (now - self._start) / max(1, step - self._first)
      left = timedelta(seconds=round(pace * (self._total - step)))
      self._console.print(f"{step}/{self._total}  {text}  {left} left")
