"""Streams: a text as training reads it, many places at once, block by block.

>>> import numpy as np
>>> streams = make_streams(np.arange(9), num_streams=2, num_steps=3)
>>> [tokens.T.tolist() for tokens, targets in streams.blocks()]
[[[0, 1, 2], [4, 5, 6]], [[3], [7]]]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LATE = 3  # one epoch in so many, the last
LARGEST = 2**31 - 1  # of the updates, which are counted in an int32


class Streams(NamedTuple):
  """A text cut into parallel streams, for truncated backpropagation.

  Stream b is contiguous, and block after block continues it, so that a state
  carried from one block to the next has read all that came before. Streams
  start evenly spaced; together they predict every token of the text but its
  first, and none more than twice.
  """

  tokens: np.ndarray  # int32 [L + 1, B], time-major
  cuts: tuple[int, ...]  # block k holds the steps cuts[k] to cuts[k + 1]

  @property
  def num_blocks(self) -> int:
    """Blocks of an epoch; the last may be shorter than the others."""
    return len(self.cuts) - 1

  @property
  def tokens_per_epoch(self) -> int:
    """Predictions that an epoch makes."""
    return self.cuts[-1] * self.tokens.shape[1]

  def block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, targets) of one block, each [T, B]."""
    rows = self.tokens[self.cuts[index] : self.cuts[index + 1] + 1]
    return rows[:-1], rows[1:]

  def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the blocks of one epoch, in the order of the text."""
    return (self.block(index) for index in range(self.num_blocks))


def make_streams(
  tokens: np.ndarray, num_streams: int, num_steps: int
) -> Streams:
  """Cut tokens [N] into B = num_streams streams, in blocks of T = num_steps.

  Raises:
    ValueError: a number is below 1, or the tokens do not fill one block.
  """
  length = _stream_length(len(tokens), num_streams, num_steps)
  starts = np.linspace(0, len(tokens) - 1 - length, num_streams).astype(int)
  rows = np.arange(length + 1)[:, None] + starts[None, :]
  return Streams(tokens[rows], (*range(0, length, num_steps), length))


def _stream_length(num_tokens: int, num_streams: int, num_steps: int) -> int:
  """Return L, the predictions of each stream."""
  if num_streams < 1 or num_steps < 1:
    raise ValueError(
      "num_streams and num_steps must be at least 1, "
      f"got {num_streams} and {num_steps}"
    )
  needed = num_streams * num_steps + 1
  if num_tokens < needed:
    raise ValueError(
      f"the text is too short: {num_streams} streams of {num_steps} steps "
      f"need at least {needed} tokens, got {num_tokens}"
    )
  return -(-(num_tokens - 1) // num_streams)


@dataclass(frozen=True)
class Reading:
  """How a training text is read, epoch after epoch.

  Attributes:
    num_streams: B, places read in parallel.
    num_steps: T, of a block.
    num_epochs: passes over the text.
    random_offsets: begin each epoch somewhere else, and go on from the text's
      end to its beginning: no token is always the first of a block.
    short_blocks: how often a block has T/2 steps instead (Merity et al. 2018,
      section 5, without their change of the learning rate). Less than T/2 steps
      at the end of each stream are then left out.
    late_streams: B of the last third of the epochs, for gradients with less
      noise; 0 for the same B.
    seed: of the offsets and of the lengths.

  Raises:
    ValueError: a number is out of its range.
  """

  num_streams: int = 32
  num_steps: int = 64
  num_epochs: int = 1
  random_offsets: bool = False
  short_blocks: float = 0.0
  late_streams: int = 0
  seed: int = 0

  def __post_init__(self):
    if self.num_epochs < 1:
      raise ValueError(f"num_epochs must be ≥ 1, got {self.num_epochs}")
    if not 0 <= self.short_blocks <= 1:
      raise ValueError(
        f"short_blocks must be in [0, 1], got {self.short_blocks}"
      )
    if self.late_streams < 0:
      raise ValueError(f"late_streams must be ≥ 0, got {self.late_streams}")

  def epochs(self, tokens: np.ndarray) -> Iterator[Streams]:
    """Iterate over the epochs of tokens [N]; the same ones at every call.

    Raises:
      ValueError: as `make_streams`.
    """
    return (self._epoch(tokens, epoch) for epoch in range(self.num_epochs))

  def num_updates(self, tokens: np.ndarray) -> int:
    """Return how many blocks all epochs of tokens [N] have.

    Raises:
      ValueError: as `make_streams`; or they are more than an int32 counts.
    """
    late = self.num_epochs - self._first_late
    total = 0
    for epochs, streams in (
      (self._first_late, self.num_streams),
      (late, self.late_streams),
    ):
      if epochs:
        length = _stream_length(len(tokens), streams, self.num_steps)
        total += epochs * -(-length // self.num_steps)
    if total > LARGEST:
      raise ValueError(
        f"the updates of all epochs must be ≤ {LARGEST:,}, got {total:,}"
      )
    if self.short_blocks:  # whose number is drawn
      total = sum(streams.num_blocks for streams in self.epochs(tokens))
    return total

  @property
  def _first_late(self) -> int:
    """The first epoch of late_streams."""
    if not self.late_streams:
      return self.num_epochs
    return self.num_epochs - self.num_epochs // LATE

  def _epoch(self, tokens: np.ndarray, epoch: int) -> Streams:
    draws = np.random.default_rng([self.seed, epoch])
    if self.random_offsets:
      tokens = np.roll(tokens, -draws.integers(len(tokens)))
    late = epoch >= self._first_late
    count = self.late_streams if late else self.num_streams
    streams = make_streams(tokens, count, self.num_steps)
    if self.short_blocks:
      length = len(streams.tokens) - 1
      streams = streams._replace(cuts=self._cuts(length, draws))
    return streams

  def _cuts(self, length: int, draws: np.random.Generator) -> tuple[int, ...]:
    """Cut into blocks of T and of T/2 only: each length is a compilation."""
    half, cuts = max(1, self.num_steps // 2), [0]
    while (left := length - cuts[-1]) >= half:
      short = draws.random() < self.short_blocks or left < self.num_steps
      cuts.append(cuts[-1] + (half if short else self.num_steps))
    return tuple(cuts)
