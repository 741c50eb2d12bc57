"""Batches of a text for truncated backpropagation through time.

Each of the B sequences of a batch continues the same sequence of the batch
before, so that the recurrent state is carried from batch to batch.

>>> import numpy as np
>>> epoch = make_batches(np.arange(9), batch_size=2, seq_len=3)
>>> [tokens.T.tolist() for tokens, targets in epoch.batches()]
[[[0, 1, 2], [4, 5, 6]], [[3], [7]]]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np

from lstm_jax.language.options import check_options, option

LATE_DIVISOR = 3  # late_batch_size applies to the last 1/3 of the epochs
MAX_STEPS = 2**31 - 1  # the training step is counted in an int32


class Batches(NamedTuple):
  """One epoch of batches.

  Column b of `tokens` is a contiguous piece of the text, and batch k + 1
  continues each column where batch k ends. The columns start evenly spaced in
  the text. Together they predict every token but the first of the text, and
  none more than twice. Where text has been left out at a gap, the columns start
  evenly spaced in each of the two pieces, none reads across the gap, and a few
  tokens may be predicted more often.
  """

  tokens: np.ndarray  # int32 [L + 1, B], time-major
  cuts: tuple[int, ...]  # batch k has the time steps cuts[k] to cuts[k + 1]

  @property
  def num_batches(self) -> int:
    """Number of batches in the epoch; the last may be shorter."""
    return len(self.cuts) - 1

  @property
  def tokens_per_epoch(self) -> int:
    """Number of tokens that the epoch predicts."""
    return self.cuts[-1] * self.tokens.shape[1]

  def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, targets) of one batch, each [T, B].

    Raises:
      IndexError: the index is not in [0, num_batches).
    """
    if not 0 <= index < self.num_batches:
      raise IndexError(f"index must be in [0, {self.num_batches}), got {index}")
    rows = self.tokens[self.cuts[index] : self.cuts[index + 1] + 1]
    return rows[:-1], rows[1:]

  def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the batches of the epoch, in the order of the text."""
    return (self.batch(index) for index in range(self.num_batches))


def make_batches(
  tokens: np.ndarray, batch_size: int, seq_len: int, gap: int | None = None
) -> Batches:
  """Return one epoch of a text in batches [T, B].

  Args:
    tokens: the text, int32 [N].
    batch_size: B, sequences in a batch.
    seq_len: T, time steps of a batch; the last batch may have fewer.
    gap: index of the first token after text that was left out; None for a text
      without a gap.

  Raises:
    ValueError: a number is below 1, tokens are no integers [N], or the text is
      shorter than one batch; or there are too few sequences for the two pieces
      beside a gap.
  """
  tokens = np.asarray(tokens)
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(
      f"tokens must be integers [N], got {tokens.dtype} {tokens.shape}"
    )
  tokens = tokens.astype(np.int32, copy=False)
  pieces = _pieces(tokens, gap)
  length, counts = _columns([*map(len, pieces)], batch_size, seq_len)
  starts, first = [], 0
  for piece, count in zip(pieces, counts, strict=True):
    last = first + len(piece) - 1 - length
    starts.append(np.linspace(first, last, count).astype(int))
    first += len(piece)
  rows = np.arange(length + 1)[:, None] + np.concatenate(starts)
  return Batches(tokens[rows], (*range(0, length, seq_len), length))


def _pieces(tokens: np.ndarray, gap: int | None) -> list[np.ndarray]:
  if gap is None:
    return [tokens]
  if not 0 < gap < len(tokens):
    raise ValueError(
      f"gap must be between two of {len(tokens)} tokens, got {gap}"
    )
  return np.split(tokens, [gap])


def _columns(
  sizes: list[int], batch_size: int, seq_len: int
) -> tuple[int, tuple[int, ...]]:
  """Return L, the tokens that each column predicts, and the pieces' columns.

  Args:
    sizes: number of tokens in each piece of the text; one or two.
    batch_size: B, the sum of the pieces' columns.
    seq_len: T.
  """
  if batch_size < 1 or seq_len < 1:
    raise ValueError(
      "batch_size and seq_len must be at least 1, "
      f"got {batch_size} and {seq_len}"
    )
  needed = batch_size * seq_len + len(sizes)
  if sum(sizes) < needed:
    raise ValueError(
      f"the text is too short: {batch_size} sequences of {seq_len} tokens "
      f"need at least {needed} tokens, got {sum(sizes)}"
    )
  if len(sizes) == 1:
    return _ceil_divide(sizes[0] - 1, batch_size), (batch_size,)
  divisions = [(k, batch_size - k) for k in range(1, batch_size)]
  lengths = [
    max(_ceil_divide(n - 1, k) for n, k in zip(sizes, counts, strict=True))
    for counts in divisions
  ]
  length = min(lengths, default=max(sizes))
  if length >= min(sizes):
    raise ValueError(
      f"no sequence reads across the gap in the text: pieces of {sizes[0]} and "
      f"{sizes[1]} tokens need a larger batch_size, got {batch_size}"
    )
  return length, divisions[lengths.index(length)]


def _ceil_divide(number: int, divisor: int) -> int:
  return -(-number // divisor)


@dataclass(frozen=True)
class BatchingConfig:
  """How a text is cut into batches, epoch after epoch.

  Raises:
    ValueError: a number is out of its range.
  """

  batch_size: int = option(32, "Sequences in a batch, B.", bounds="[1, inf)")
  seq_len: int = option(
    64,
    "Sequence length T, in tokens: the time steps of truncated backpropagation "
    "in one training step.",
    bounds="[1, inf)",
  )
  num_epochs: int = option(
    1, "Passes over the training text.", bounds="[1, inf)"
  )
  random_offsets: bool = option(
    False,
    "Begin each epoch at a random place in the text and wrap around at its "
    "end, so that no token is always the first of a batch. The pieces beside a "
    "gap are each rotated so.",
  )
  short_seq_prob: float = option(
    0.0,
    "Probability that a batch has half of seq_len time steps (Merity et al. "
    "2018, section 5, without their change of the learning rate). A rest of "
    "less than half of seq_len at the end of an epoch is then left out.",
    bounds="[0, 1]",
  )
  late_batch_size: int = option(
    0,
    "Sequences in a batch in the last third of the epochs, for gradients with "
    "less noise; 0 for batch_size.",
    bounds="[0, inf)",
  )

  def __post_init__(self):
    check_options(self)

  def epochs(
    self, tokens: np.ndarray, seed: int, gap: int | None = None
  ) -> Iterator[Batches]:
    """Iterate over the epochs of a text, each of them `Batches`.

    Args:
      tokens: the text, int32 [N].
      seed: decides the random offsets and sequence lengths; the same seed
        gives the same batches at every call.
      gap: as in `make_batches`.

    Raises:
      ValueError: as `make_batches`.
    """
    return (
      self._epoch(tokens, seed, gap, epoch) for epoch in range(self.num_epochs)
    )

  def num_steps(
    self, tokens: np.ndarray, seed: int, gap: int | None = None
  ) -> int:
    """Return the number of batches of all epochs: one training step each.

    Args:
      tokens: as in `epochs`.
      seed: as in `epochs`.
      gap: as in `epochs`.

    Raises:
      ValueError: as `make_batches`; or there are more than an int32 can count.
    """
    total = sum(n * steps for n, steps in self._lengths(tokens, gap))
    if total > MAX_STEPS:
      raise ValueError(
        f"there must be at most {MAX_STEPS:,} training steps, got {total:,}"
      )
    if self.short_seq_prob:  # the number of batches is random
      total = sum(self.epoch_lengths(tokens, seed, gap))
    return total

  def epoch_lengths(
    self, tokens: np.ndarray, seed: int, gap: int | None = None
  ) -> Iterator[int]:
    """Iterate over the numbers of batches of the epochs.

    The arguments are those of `num_steps`, which is their sum, and so are the
    errors, but for the number of training steps.
    """
    if self.short_seq_prob:
      return (epoch.num_batches for epoch in self.epochs(tokens, seed, gap))
    lengths = self._lengths(tokens, gap)
    return chain.from_iterable(repeat(steps, n) for n, steps in lengths)

  def _lengths(
    self, tokens: np.ndarray, gap: int | None
  ) -> list[tuple[int, int]]:
    """Return (epochs, batches in each), where no batch is short at random."""
    sizes, lengths = [*map(len, _pieces(tokens, gap))], []
    late = self.num_epochs - self._first_late
    for epochs, batch_size in (
      (self._first_late, self.batch_size),
      (late, self.late_batch_size),
    ):
      if epochs:
        rows, _ = _columns(sizes, batch_size, self.seq_len)
        lengths.append((epochs, _ceil_divide(rows, self.seq_len)))
    return lengths

  @property
  def _first_late(self) -> int:
    """The first epoch with late_batch_size."""
    if not self.late_batch_size:
      return self.num_epochs
    return self.num_epochs - self.num_epochs // LATE_DIVISOR

  def _epoch(
    self, tokens: np.ndarray, seed: int, gap: int | None, epoch: int
  ) -> Batches:
    rng = np.random.default_rng([seed, epoch])
    if self.random_offsets:
      rotated = (
        np.roll(piece, -rng.integers(max(1, len(piece))))
        for piece in _pieces(tokens, gap)
      )
      tokens = np.concatenate([*rotated])
    late = epoch >= self._first_late
    batch_size = self.late_batch_size if late else self.batch_size
    batches = make_batches(tokens, batch_size, self.seq_len, gap)
    if self.short_seq_prob:
      length = len(batches.tokens) - 1
      batches = batches._replace(cuts=self._random_cuts(length, rng))
    return batches

  def _random_cuts(self, length: int, rng: np.random.Generator) -> tuple:
    """Cut an epoch into batches of T or T/2 time steps.

    No other lengths occur, because each length is compiled separately.
    """
    half, cuts = max(1, self.seq_len // 2), [0]
    while (left := length - cuts[-1]) >= half:
      short = rng.random() < self.short_seq_prob or left < self.seq_len
      cuts.append(cuts[-1] + (half if short else self.seq_len))
    return tuple(cuts)
