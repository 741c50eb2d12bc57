"""The progress bar of a training, in a terminal and as lines."""

import io
import re

from rich.console import Console

from experiments.cli import make_console
from experiments.trainer.training_bar import TrainingBar


def test_a_bar_has_the_remaining_time_if_updates_are_minutes_apart():
  now, sent = 0.0, io.StringIO()
  console = Console(
    file=sent, width=80, force_terminal=True, get_time=lambda: now
  )
  with TrainingBar(console, 100, "character") as bar:
    for step in range(10, 40, 10):
      bar.update(step, 3.0, 5.0)
      now += 100.0
    bar.advance(35)
  text = re.sub(r"\x1b\[[0-9]+m", "", sent.getvalue())
  # Steps 11 to 35 took 300 s, so that the last 65 take 780.
  assert " 35/100 3.000 nats/char  5 chars/s 13:00 left\n" in text


def test_a_run_of_one_row_has_one_line_and_a_longer_one_no_first(capsys):
  for total in (10, 20):
    bar = TrainingBar(make_console(), total, "character")
    bar.update(10, 3.0, 5.0)
    line = "10/10  3.000 nats/char  5 chars/s  0:00:00 left\n"
    assert capsys.readouterr().out == (line if total == 10 else "")
