"""The course of a run for TensorBoard, where tensorboardX is installed.

  tensorboard --logdir=runs

Scalars for each row of metrics.jsonl: the losses, the speed, the norm of the
gradient (the mean of the row's updates) and of its parts (of the last update).
At looks also the norm of each part of the weights, the sample, and the gates on
a piece of the watched text: their histograms, and the share below 0.1 and above
0.9, where a sigmoid is nearly shut or open and its gradient small.

Every event is on its way to the disk when a method returns, as with the run's
other files. tensorboardX's own SummaryWriter hands events to a thread, and
waits for it for ever once the disk is full.
"""

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.states import SIGNED, read, signals
from experiments.trainer.run_dir import naming
from lstm_jax.cells.cell import Cell
from lstm_jax.language import LanguageParams
from lstm_jax.training import part_norms

try:
  from tensorboardX import summary
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.record_writer import masked_crc32c
except ImportError:
  summary = None

TAGS = {  # of what a row of metrics.jsonl has
  "loss": "loss/training",
  "development": "loss/development",
  "held_out": "loss/held_out",
  "grad_norm": "grad_norm/all",
  "characters_per_second": "speed/characters_per_second",
  "words_per_second": "speed/words_per_second",
  "seconds": "speed/seconds",
  "skipped": "process/skipped_updates",
  "resident_mb": "process/resident_mb",
  "live_mb": "process/live_mb",
  "compilations": "process/compilations",
}
SHUT, OPEN = 0.1, 0.9
BINS = np.linspace(0, 1, 21)


class TensorBoardWriter:
  """Writes a run's course in a folder of its own.

  Does nothing before `begin`, or where the library is not installed.
  """

  def __init__(self, directory: Path, cell: Cell, piece: np.ndarray):
    self._folder = directory
    self._cell = cell
    self._piece = piece
    self._file: Path | None = None

  def begin(self, step: int) -> None:
    """Begin a file whose first update is `step`.

    What earlier files have of that update and later, TensorBoard drops.

    Raises:
      OSError: it cannot be written, as in every method; the error names it.
    """
    if summary is None:
      return
    self._folder.mkdir(exist_ok=True)
    # In the order of their names, also of those of the same second.
    name = f"{time():010.0f}.{socket.gethostname()}.{step:09d}.{os.getpid()}"
    self._file = self._folder / f"events.out.tfevents.{name}"
    start = SessionLog(status=SessionLog.START)
    self._write(Event(file_version="brain.Event:2"))
    self._write(Event(step=step, session_log=start))

  def row(self, row: Mapping[str, Any], norms: Mapping[str, jax.Array]) -> None:
    """Take a row of metrics.jsonl, and norms of the gradient's parts."""
    if self._file:
      told = {TAGS[n]: row[n] for n in TAGS if row.get(n) is not None}
      told |= _norms("grad_norm", norms)
      self._add(row["step"], _scalars(told))

  def look(self, step: int, params: LanguageParams) -> None:
    """Take the weights that are looked at."""
    if not self._file:
      return
    told, histograms = _norms("weight_norm", part_norms(params)), []
    layers, _ = read(self._cell, params, jnp.asarray(self._piece))
    for number, layer in enumerate(layers, start=1):
      for letter, values in signals(self._cell, layer).items():
        if letter in SIGNED:
          continue
        gate, name = np.ravel(values), f"layer{number}_{letter}"
        told[f"gates_below_{SHUT}/{name}"] = (gate < SHUT).mean()
        told[f"gates_above_{OPEN}/{name}"] = (gate > OPEN).mean()
        histograms.append(summary.histogram(f"gates/{name}", gate, BINS))
    self._add(step, [*_scalars(told), *histograms])

  def sample(self, step: int, title: str, text: str) -> None:
    """Take a sample; TensorBoard reads Markdown, in which it stands as code."""
    if self._file:
      code = "".join(f"\n    {line}" for line in text.split("\n"))
      self._add(step, [summary.text("samples", f"{title}\n{code}")])

  def _add(self, step: int, summaries: list[Any]) -> None:
    event = Event(step=step)
    for each in summaries:
      event.summary.MergeFrom(each)
    self._write(event)

  def _write(self, event: Any) -> None:
    """Add a record: length, its CRC, event, its CRC, as TensorFlow has them."""
    event.wall_time = time()
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    assert self._file
    with naming(self._file), self._file.open("ab") as file:
      file.write(length + crcs[0] + data + crcs[1])


def _norms(name: str, norms: Mapping[str, jax.Array]) -> dict[str, Any]:
  return {f"{name}/{part}": n for part, n in jax.device_get(norms).items()}


def _scalars(told: Mapping[str, Any]) -> list[Any]:
  return [summary.scalar(tag, np.asarray(n)) for tag, n in told.items()]
