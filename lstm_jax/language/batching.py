"""Streams: a text as training reads it, many places at once, block by block.

>>> import numpy as np
>>> streams = make_batches(np.arange(9), batch_size=2, seq_len=3)
>>> [tokens.T.tolist() for tokens, targets in streams.batches()]
[[[0, 1, 2], [4, 5, 6]], [[3], [7]]]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LATE = 3  # one epoch in so many, the last
LARGEST = 2**31 - 1  # of the updates, which are counted in an int32


class Batches(NamedTuple):
  """A text cut into parallel streams, for truncated backpropagation.

  Stream b is contiguous, and block after block continues it, so that a state
  carried from one block to the next has read all that came before. Streams
  start evenly spaced; together they predict every token of the text but its
  first, and none more than twice.
  """

  tokens: np.ndarray  # int32 [L + 1, B], time-major
  cuts: tuple[int, ...]  # block k holds the steps cuts[k] to cuts[k + 1]

  @property
  def num_batches(self) -> int:
    """Blocks of an epoch; the last may be shorter than the others."""
    return len(self.cuts) - 1

  @property
  def tokens_per_epoch(self) -> int:
    """Predictions that an epoch makes."""
    return self.cuts[-1] * self.tokens.shape[1]

  def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, targets) of one block, each [T, B]."""
    rows = self.tokens[self.cuts[index] : self.cuts[index + 1] + 1]
    return rows[:-1], rows[1:]

  def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the blocks of one epoch, in the order of the text."""
    return (self.batch(index) for index in range(self.num_batches))


def make_batches(tokens: np.ndarray, batch_size: int, seq_len: int) -> Batches:
  """Cut tokens [N] into B = batch_size streams, in blocks of T = seq_len.

  Raises:
    ValueError: a number is below 1, or the tokens do not fill one block.
  """
  length = _stream_length(len(tokens), batch_size, seq_len)
  starts = np.linspace(0, len(tokens) - 1 - length, batch_size).astype(int)
  rows = np.arange(length + 1)[:, None] + starts[None, :]
  return Batches(tokens[rows], (*range(0, length, seq_len), length))


def _stream_length(num_tokens: int, batch_size: int, seq_len: int) -> int:
  """Return L, the predictions of each stream."""
  if batch_size < 1 or seq_len < 1:
    raise ValueError(
      "batch_size and seq_len must be at least 1, "
      f"got {batch_size} and {seq_len}"
    )
  needed = batch_size * seq_len + 1
  if num_tokens < needed:
    raise ValueError(
      f"the text is too short: {batch_size} streams of {seq_len} steps "
      f"need at least {needed} tokens, got {num_tokens}"
    )
  return -(-(num_tokens - 1) // batch_size)


@dataclass(frozen=True)
class BatchingConfig:
  """How a training text is read, epoch after epoch.

  Attributes:
    batch_size: B, places read in parallel.
    seq_len: T, of a block.
    num_epochs: passes over the text.
    random_offsets: begin each epoch somewhere else, and go on from the text's
      end to its beginning: no token is always the first of a block.
    short_seq_prob: how often a block has T/2 steps instead (Merity et al. 2018,
      section 5, without their change of the learning rate). Less than T/2 steps
      at the end of each stream are then left out.
    late_batch_size: B of the last third of the epochs, for gradients with less
      noise; 0 for the same B.
    seed: of the offsets and of the lengths.

  Raises:
    ValueError: a number is out of its range.
  """

  batch_size: int = 32
  seq_len: int = 64
  num_epochs: int = 1
  random_offsets: bool = False
  short_seq_prob: float = 0.0
  late_batch_size: int = 0
  seed: int = 0

  def __post_init__(self):
    if self.num_epochs < 1:
      raise ValueError(f"num_epochs must be ≥ 1, got {self.num_epochs}")
    if not 0 <= self.short_seq_prob <= 1:
      raise ValueError(
        f"short_seq_prob must be in [0, 1], got {self.short_seq_prob}"
      )
    if self.late_batch_size < 0:
      raise ValueError(
        f"late_batch_size must be ≥ 0, got {self.late_batch_size}"
      )

  def epochs(self, tokens: np.ndarray) -> Iterator[Batches]:
    """Iterate over the epochs of tokens [N]; the same ones at every call.

    Raises:
      ValueError: as `make_batches`.
    """
    return (self._epoch(tokens, epoch) for epoch in range(self.num_epochs))

  def num_steps(self, tokens: np.ndarray) -> int:
    """Return how many blocks all epochs of tokens [N] have.

    Raises:
      ValueError: as `make_batches`; or they are more than an int32 counts.
    """
    late = self.num_epochs - self._first_late
    total = 0
    for epochs, streams in (
      (self._first_late, self.batch_size),
      (late, self.late_batch_size),
    ):
      if epochs:
        length = _stream_length(len(tokens), streams, self.seq_len)
        total += epochs * -(-length // self.seq_len)
    if total > LARGEST:
      raise ValueError(
        f"the updates of all epochs must be ≤ {LARGEST:,}, got {total:,}"
      )
    if self.short_seq_prob:  # whose number is drawn
      total = sum(streams.num_batches for streams in self.epochs(tokens))
    return total

  @property
  def _first_late(self) -> int:
    """The first epoch of late_batch_size."""
    if not self.late_batch_size:
      return self.num_epochs
    return self.num_epochs - self.num_epochs // LATE

  def _epoch(self, tokens: np.ndarray, epoch: int) -> Batches:
    draws = np.random.default_rng([self.seed, epoch])
    if self.random_offsets:
      tokens = np.roll(tokens, -draws.integers(len(tokens)))
    late = epoch >= self._first_late
    count = self.late_batch_size if late else self.batch_size
    streams = make_batches(tokens, count, self.seq_len)
    if self.short_seq_prob:
      length = len(streams.tokens) - 1
      streams = streams._replace(cuts=self._cuts(length, draws))
    return streams

  def _cuts(self, length: int, draws: np.random.Generator) -> tuple[int, ...]:
    """Cut into blocks of T and of T/2 only: each length is a compilation."""
    half, cuts = max(1, self.seq_len // 2), [0]
    while (left := length - cuts[-1]) >= half:
      short = draws.random() < self.short_seq_prob or left < self.seq_len
      cuts.append(cuts[-1] + (half if short else self.seq_len))
    return tuple(cuts)
