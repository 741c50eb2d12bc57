"""What becomes of a run's folder where several processes train: one has it.

The first process claims the folder and writes there. The others are told its
name, to read a checkpoint from, and keep a journal that writes nothing there.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from experiments.trainer import multihost
from experiments.trainer.claim import claimed
from experiments.trainer.config import TrainConfig
from experiments.trainer.logger import RunLogger
from lstm_jax.language import LanguageModel, LanguageParams
from lstm_jax.training import Average, TrainState

PATH_BYTES = 4096  # of a folder's name, as processes tell it
NEW, OLD = b"n", b"o"


@contextmanager
def claimed_by_first(
  config: TrainConfig, corpus_sha256: str
) -> Iterator[tuple[Path, bool]]:
  """Hold the folder as `claimed` does, in the first process for all of them.

  Yields:
    As `claimed`.

  Raises:
    ValueError: as `claimed` in the first process; in the others, that it has
      raised there.
  """
  if jax.process_count() == 1:
    with claimed(config, corpus_sha256) as claim:
      yield claim
    return
  with ExitStack() as held:
    message = b""
    try:
      if multihost.is_first():
        directory, goes_on = held.enter_context(claimed(config, corpus_sha256))
        message = (OLD if goes_on else NEW) + os.fsencode(directory)
    finally:
      message = multihost.told(message.ljust(PATH_BYTES, b"\0"))
      message = message.rstrip(b"\0")
    if not message:
      raise ValueError("the first process has stopped: see its error")
    yield Path(os.fsdecode(message[1:])), message[:1] == OLD


def journal_class() -> type[RunLogger]:
  """Return what this process keeps its journal by."""
  return RunLogger if multihost.is_first() else Onlooker


class Onlooker(RunLogger):
  """The journal of a process that is not the first: it only counts along."""

  def __init__(self, directory: Path, *arguments: Any):
    del directory
    self._nowhere = TemporaryDirectory()
    super().__init__(Path(self._nowhere.name), *arguments)

  def sample(
    self,
    title: str,
    model: LanguageModel,
    params: LanguageParams,
    key: jax.Array,
    length: int,
    temperature: float,
  ) -> None:
    """Write nothing."""

  def save(
    self,
    step: int,
    params: LanguageParams,
    state: TrainState,
    average: Average | None,
  ) -> None:
    """Stop the clock, as the first process does while it saves."""
    self._tally.stop_clock()

  def finish(self) -> None:
    """Write nothing."""

  def _record(self, **row: Any) -> None:
    """Write nothing."""

  def close(self) -> None:
    """Remove the folder that nothing was written to."""
    self._writer.close()
    self._nowhere.cleanup()
