"""The progress of a training: a bar in a terminal, else lines."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  Task,
  TextColumn,
  TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

LINE_EVERY = 10.0  # least seconds between progress lines outside a terminal
SPEED_OVER = 3600.0  # seconds, at most, whose mean speed gives the time left


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
    self._console = console
    self._total = total
    self._quiet = quiet
    self._unit = unit.replace("character", "char")
    self._start = self._shown = time.monotonic()
    # The pace is measured from the first update on: compilation is before it.
    self._first = 0  # its step
    self._bar = Progress(
      # The bar takes the width that is left; if there is none, the text is cut
      # off first, and only then the steps and the time.
      BarColumn(bar_width=None, table_column=Column(ratio=1)),
      MofNCompleteColumn(table_column=Column(no_wrap=True)),
      _CutColumn("{task.fields[text]}", table_column=Column()),
      TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
      TextColumn("left"),
      console=console,
      expand=True,
      # The default is 30 s; the time left is unknown without two updates in it.
      speed_estimate_period=SPEED_OVER,
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
    if self._quiet:
      return
    text = f"{loss:.3f} nats/{self._unit}  {rate:,.0f} {self._unit}s/s"
    if self._console.is_interactive:
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


class _CutColumn(TextColumn):
  """One line of text, the first to be cut off in a narrow terminal.

  Rich makes narrow first the columns without no_wrap, the widest before all:
  here, this one, since the bar has its least width by then.
  """

  def render(self, task: Task) -> Text:
    text = super().render(task)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
