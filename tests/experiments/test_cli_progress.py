"""What a run prints in a terminal, in a pipe and on a build server."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest

from experiments import cli, sample, train
from experiments.cli import make_console
from experiments.comparison.results import recorded_command
from experiments.trainer import display
from experiments.trainer.display import TrainingBar
from experiments.trainer.format import escape_controls
from experiments.trainer.records import replace
from tests.experiments.sampled import DEFAULTS

# What hides or moves the cursor, or erases a part of the screen.
MOVES = re.compile(r"\x1b\[(?:\?25[lh]|\d*[ABCDHJK])|\r(?!\n)")


@contextlib.contextmanager
def terminal(monkeypatch):
  """Replace standard output by a terminal; yield a list of the bytes sent."""
  ours, theirs = os.openpty()
  sent = []

  def listen():
    with contextlib.suppress(OSError):  # once the terminal is closed
      while data := os.read(ours, 4096):
        sent.append(data)

  listener = threading.Thread(target=listen)
  listener.start()
  with open(theirs, "w", encoding="utf-8") as file:
    monkeypatch.setattr(sys, "stdout", file)
    yield sent
  listener.join()
  os.close(ours)


@contextlib.contextmanager
def pipe(monkeypatch, tmp_path):
  """Replace standard output by a file; yield its path.

  Like a pipe, the file is no terminal.
  """
  path = tmp_path / "out"
  with path.open("w", encoding="utf-8") as file:
    monkeypatch.setattr(sys, "stdout", file)
    yield path


@pytest.fixture
def here(monkeypatch):
  """Set the environment of a user's terminal, and return monkeypatch.

  Variables of a build server, which may run the tests, are removed.
  """
  for name in ("CI", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm-256color")
  return monkeypatch


def show(quiet=False):
  """Show a hundred training steps."""
  bar = TrainingBar(make_console(), 100, "character", quiet=quiet)
  with bar:
    for step in range(10, 101, 10):
      bar.update(step, 4 - step / 50, 1234.5)


def clock(monkeypatch, pace):
  """Have a training step of `show` take `pace` seconds.

  The bar reads the clock as it is made, and then once in ten steps.
  """
  now = iter(range(0, 10**9, 10 * pace))
  monkeypatch.setattr(display.time, "monotonic", lambda: float(next(now)))


def test_in_a_terminal_there_is_a_bar_of_one_line(here):
  for columns in (80, 120):
    here.setenv("COLUMNS", str(columns))
    with terminal(here) as sent:
      show()
    text = b"".join(sent).decode()
    assert MOVES.search(text)
    assert "100/100" in text and "2.000 nats/char" in text
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", text))
    shown = [frame for frame in frames if frame]
    assert all("/100" in frame and "left" in frame for frame in shown)
    assert max(map(len, shown)) <= columns


def test_an_error_keeps_its_status_where_it_cannot_be_printed(monkeypatch):
  # `_fail` replaces this hook; it is restored after the test.
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  with open("/dev/full", "w", buffering=1, encoding="utf-8") as full:
    monkeypatch.setattr(sys, "stderr", full)
    assert cli._fail(ValueError("no such run"), 2) == 2


@pytest.mark.parametrize(
  "changes", [{"CI": "true"}, {"TERM": "dumb"}], ids=["CI", "dumb"]
)
def test_a_terminal_without_cursor_movements_gets_lines(changes, here):
  for name, value in changes.items():
    here.setenv(name, value)
  with terminal(here) as sent:
    clock(here, pace=1)
    show()
  text = b"".join(sent).decode()
  assert not MOVES.search(text)
  assert (
    text.splitlines()[0]
    == "20/100  3.600 nats/char  1,234 chars/s  0:01:20 left"
  )


@pytest.mark.parametrize("changes", [{}, {"FORCE_COLOR": "1"}, {"CI": "1"}])
def test_in_a_pipe_there_are_lines_with_the_time_in_hours(
  changes, here, tmp_path
):
  for name, value in changes.items():
    here.setenv(name, value)
  with pipe(here, tmp_path) as path:
    clock(here, pace=90)
    show()
  lines = path.read_text().splitlines()
  # The first update, at step 10, prints no line. Ten steps take 900 s, so that
  # the last 80 take 7,200.
  assert lines[0] == "20/100  3.600 nats/char  1,234 chars/s  2:00:00 left"
  assert lines[-1] == "100/100  2.000 nats/char  1,234 chars/s  0:00:00 left"
  assert len(lines) == 9
  assert "\x1b" not in path.read_text()


def test_quiet_shows_neither_bar_nor_lines(here, tmp_path):
  with terminal(here) as sent:
    show(quiet=True)
  assert b"".join(sent) == b""
  with pipe(here, tmp_path) as path:
    clock(here, pace=90)
    show(quiet=True)
  assert path.read_text() == ""


def test_a_printed_command_starts_the_same_python(here, tmp_path):
  arguments = "sample", ["--run=runs/my run"]
  program = "-m experiments.sample '--run=runs/my run'"
  here.setenv("UV_RUN_RECURSION_DEPTH", "1")
  assert cli.command_line(*arguments) == f"uv run python {program}"
  here.delenv("UV_RUN_RECURSION_DEPTH")
  here.setenv("PATH", f"{sys.exec_prefix}/bin")
  assert cli.command_line(*arguments) == f"python {program}"
  here.setenv("PATH", str(tmp_path))
  assert cli.command_line(*arguments) == f"{sys.executable} {program}"
  # A recorded command never has the path of this machine's Python.
  here.setattr(sys, "argv", ["sample.py", "--run=runs/my run"])
  assert recorded_command("sample") == f"python {program}"


@pytest.mark.parametrize(
  ("changes", "added"),
  [
    ({}, ""),
    ({"run": ""}, " --run=runs/new"),
    ({"overwrite": True}, " --nooverwrite"),
    ({"resume": False}, " --resume"),
  ],
)
def test_a_stopped_training_prints_the_command_that_resumes_it(
  changes, added, here, config, console
):
  here.setattr(sys, "argv", ["train", "--seed=1"])
  config = replace(config, **changes)
  given = "train", config, Path("runs/new")
  assert cli.exit_status(*given, signal.SIGTERM, console) == 143
  *_, command = console.file.getvalue().splitlines()
  assert command.endswith(f" -m experiments.train --seed=1{added}")
  assert sys.argv == ["train", "--seed=1"]


class ClosedPipe(io.StringIO):
  """A pipe whose reader leaves at the evaluation after step 30."""

  def write(self, text):
    if "step 30, epoch" in text:
      raise BrokenPipeError
    return super().write(text)


def test_a_run_whose_pipe_is_closed_can_be_resumed(config, console):
  closed = make_console()
  closed.file = ClosedPipe()
  with pytest.raises(BrokenPipeError):
    train.run(config, closed)
  assert "step 20, epoch" in closed.file.getvalue()
  assert train.run(config, console).stopped_by is None
  assert "resumed     after step 20\n" in console.file.getvalue()


def test_a_quiet_run_prints_only_its_heading_and_its_end(config, here):
  config = replace(config, quiet=True)
  with terminal(here) as sent:
    result = train.run(config, make_console())
  text = b"".join(sent).decode().replace("\r\n", "\n")
  assert "\x1b" not in text
  heading, end = text.split("\n\n")
  assert heading.startswith("model ") and heading.endswith(config.job.run)
  assert end.startswith(f"best validation loss {result.val_loss:.4f}")
  assert "untrained" in (result.directory / "samples.txt").read_text()


@pytest.mark.exhaustive
def test_control_characters_are_escaped_in_a_terminal_and_kept_elsewhere(
  config, here, tmp_path
):
  """They could move the cursor, or set the title of the window."""
  here.setenv("TERM", "dumb")  # for which rich writes no escape sequence
  Path(config.data.corpus).write_text("\x1b\t\x07\n\x9b\x7f" * 200)
  with terminal(here) as sent:
    directory = train.run(config, make_console()).directory
  text = b"".join(sent).decode().replace("\r\n", "\n")
  assert not re.search(r"[^\n\t -~\xa1-\uffff]", text)
  for shown in (r"\x1b", r"\x07", r"\x9b", r"\x7f"):
    assert shown in text
  samples = (directory / "samples.txt").read_text("utf-8")
  assert set("\x1b\t\x07\n\x9b\x7f") < set(samples) and "\\" not in samples

  assert escape_controls("\ta\r\n") == "\ta\\x0d\n"
  options = DEFAULTS | {"length": 60, "temperature": 2.0}
  (parts,) = sample.run(str(directory), **options)
  texts = [[*parts]]
  with terminal(here) as sent:
    sample.show(texts)
  text = b"".join(sent).decode().replace("\r\n", "\n")
  assert r"\x1b" in text and not re.search(r"[^\n\t -~]", text)
  with pipe(here, tmp_path) as path:
    sample.show(texts)
    sys.stdout.flush()
    assert path.read_bytes().decode() == "".join(texts[0]) + "\n"
