"""The metrics of a run for TensorBoard, where tensorboardX is installed.

  tensorboard --logdir=runs

Each row of metrics.jsonl becomes scalars: losses, learning rate, speed, memory
and compilations, and the norm of the gradient (mean over the row's steps) and
of its parts (of the last step). Each evaluation adds the norm of each part of
the weights, the sample, and the gates on an excerpt of the validation text:
their histograms, and the share below 0.1 and above 0.9, where a sigmoid
saturates and its gradient is small.

Events are written by tensorboardX's `EventsWriter`, and are on the disk when a
method returns. Its SummaryWriter would hand them to a thread, and wait for it
forever once the disk is full.
"""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any
from weakref import finalize

import jax
import jax.numpy as jnp
import numpy as np

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

weight_norms = jax.jit(part_norms)  # one program, not thirty

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
CLOSED, OPEN = 0.1, 0.9  # a gate is closed below CLOSED, and open above OPEN
# Of an event file. TensorBoard reads the files in the order of their names.
EVENT_FILE = re.compile(
  r"(?P<start>events\.out\.tfevents\.)(?P<second>\d+)(?P<end>.*)"
)
BINS = np.linspace(0, 1, 21)  # edges of a histogram's bins


class TensorBoardWriter:
  """Writes event files into a directory of its own.

  Does nothing before `begin`, or where tensorboardX is not installed.

  Args:
    directory: of the event files.
    cell: of every layer of the model.
    excerpt: validation tokens, integers [N], whose gates are summarised.
  """

  def __init__(self, directory: Path, cell: Cell, excerpt: np.ndarray):
    self._directory = directory
    self._cell = cell
    self._excerpt = excerpt
    self._events: EventsWriter | None = None

  def begin(self, step: int) -> None:
    """Begin an event file whose first training step is `step`.

    TensorBoard drops what earlier files say of that step and later ones.

    Raises:
      OSError: a file cannot be written, as in every method; the error names the
        directory.
    """
    if summary is None:
      return
    with naming(self._directory):
      self._directory.mkdir(exist_ok=True)
      # Files sort by their names: by second, host and step.
      suffix = f".{step:09d}.{os.getpid()}"
      earlier = {*self._directory.iterdir()}
      self._events = EventsWriter(str(self._directory / "events"), suffix)
      _sort_last({*self._directory.iterdir()} - earlier, earlier)
    finalize(self, _close, self._events)
    start = SessionLog(status=SessionLog.START)
    self._write(Event(step=step, session_log=start))

  def row(
    self, row: Mapping[str, Any], grad_norms: Mapping[str, jax.Array]
  ) -> None:
    """Write a row of metrics.jsonl, and the norms of the gradient's parts."""
    if self._events:
      values = {TAGS[n]: row[n] for n in TAGS if row.get(n) is not None}
      values |= _norms("grad_norm", grad_norms)
      self._add(row["step"], _scalars(values))

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
    self._add(step, [*_scalars(values), *histograms])

  def sample(self, step: int, title: str, text: str) -> None:
    """Write a sample, as a block of code in TensorBoard's Markdown."""
    if self._events:
      code = "".join(f"\n    {line}" for line in text.split("\n"))
      self._add(step, [summary.text("samples", f"{title}\n{code}")])

  def _add(self, step: int, summaries: list[Any]) -> None:
    event = Event(step=step)
    for each in summaries:
      event.summary.MergeFrom(each)
    self._write(event)

  def _write(self, event: Any) -> None:
    assert self._events
    event.wall_time = time()
    with naming(self._directory):
      self._events.write_event(event)
      self._events.flush()


def _sort_last(new: set[Path], earlier: set[Path]) -> None:
  """Rename a new event file so that its name sorts after the earlier ones.

  The name has the second in which the file was made: too small a number if the
  clock was set back, or the run resumes on a machine whose clock is behind.
  """
  named = [found for path in earlier if (found := EVENT_FILE.match(path.name))]
  last = max((int(found["second"]) for found in named), default=0)
  for path in new:
    found = EVENT_FILE.match(path.name)
    if found and int(found["second"]) <= last:
      path.rename(path.with_name(f"{found['start']}{last + 1}{found['end']}"))


def _close(events: Any) -> None:
  with suppress(OSError):  # every event was flushed, or raised its error then
    events.close()


def _norms(name: str, norms: Mapping[str, jax.Array]) -> dict[str, Any]:
  return {f"{name}/{part}": n for part, n in jax.device_get(norms).items()}


def _scalars(values: Mapping[str, Any]) -> list[Any]:
  return [summary.scalar(tag, np.asarray(n)) for tag, n in values.items()]
