"""The epochs of a training run: random offsets, short batches, batch sizes.

>>> import numpy as np
>>> config = BatchingConfig(batch_size=2, seq_len=3, num_epochs=5)
>>> config.num_steps(np.arange(9), seed=0)  # 5 ⌈4 / 3⌉: 4 time steps an epoch
10
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lstm_jax.cells.checks import check_count
from lstm_jax.language.batching import (
  Batches,
  as_text,
  columns,
  cuts,
  make_batches,
  pieces,
)
from lstm_jax.language.options import check_options, option

LATE_DIVISOR = 3  # late_batch_size applies to the last 1/3 of the epochs
MAX_STEPS = 2**31 - 1  # the training step is counted in an int32


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
    "end, so that no token is always the first of a batch. If a part was cut "
    "out of the text, the two pieces beside the gap are rotated separately.",
  )
  short_seq_prob: float = option(
    0.0,
    "Probability that a batch has half of seq_len time steps (Merity et al. "
    "2018, section 4.1, without their normal draw of the length and their "
    "change of the learning rate). A rest of less than half of seq_len at the "
    "end of an epoch is then left out.",
    bounds="[0, 1]",
  )
  late_batch_size: int = option(
    0,
    "Sequences in a batch in the last third of the epochs, for gradients with "
    "less noise; 0 for batch_size. It has no effect with fewer than 3 epochs.",
    bounds="[0, inf)",
  )

  def __post_init__(self):
    check_options(self)

  @property
  def batch_sizes(self) -> tuple[int, ...]:
    """The batch size, and that of the late epochs if there are any."""
    late = range(self._first_late, self.num_epochs)
    return (self.batch_size, *([self.late_batch_size] if late else []))

  def epochs(
    self, tokens: np.ndarray, seed: int, gap: int | None = None
  ) -> Iterator[Batches]:
    """Iterate over the epochs of a text, each of them `Batches`.

    Args:
      tokens: the text, int32 [N].
      seed: an integer of at least 0, which decides the random offsets and
        sequence lengths; the same seed gives the same batches at every call.
      gap: as in `make_batches`.

    Raises:
      ValueError: as `make_batches`, or the seed is not an integer ≥ 0. It is
        raised when the first epoch is made; if late_batch_size is the cause,
        when the first epoch with that batch size is made.
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
      ValueError: as `make_batches`; the seed is not an integer ≥ 0; or there
        are more batches than an int32 can count (not counting those that
        short_seq_prob adds).
    """
    return sum(n * steps for n, steps in self.epoch_lengths(tokens, seed, gap))

  def epoch_lengths(
    self, tokens: np.ndarray, seed: int, gap: int | None = None
  ) -> list[tuple[int, int]]:
    """Return (number of epochs, batches in each) for consecutive equal epochs.

    `num_steps` is the sum of their products; it has the same arguments and
    raises the same errors.
    """
    schedule = self._schedule(tokens, seed, gap)
    return [(epochs, len(ends) - 1) for epochs, _, ends in schedule]

  def batch_shapes(
    self, tokens: np.ndarray, seed: int, gap: int | None = None
  ) -> Counter[tuple[int, int]]:
    """Return the number of batches of each shape (T, B) in all epochs.

    The arguments and errors are those of `num_steps`.
    """
    shapes: Counter[tuple[int, int]] = Counter()
    for epochs, batch_size, ends in self._schedule(tokens, seed, gap):
      for length in np.diff(ends).tolist():
        shapes[length, batch_size] += epochs
    return shapes

  def _schedule(
    self, tokens: np.ndarray, seed: int, gap: int | None
  ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Iterate over (epochs, B, cuts) for epochs in a row with equal cuts."""
    sizes = [*map(len, _pieces(tokens, seed, gap))]
    stages = []
    for epochs, batch_size in (
      (range(self._first_late), self.batch_size),
      (range(self._first_late, self.num_epochs), self.late_batch_size),
    ):
      if epochs:
        length, _ = columns(sizes, batch_size, self.seq_len)
        stages.append((epochs, batch_size, length))
    # With batches that are short at random, this is about the smallest number.
    # `len` would overflow for a range of 2⁶³ epochs.
    total = sum(
      (epochs.stop - epochs.start) * math.ceil(length / self.seq_len)
      for epochs, _, length in stages
    )
    if total > MAX_STEPS:
      raise ValueError(
        f"num_epochs must give at most {MAX_STEPS:,} training steps, "
        f"got {total:,}"
      )
    for epochs, batch_size, length in stages:
      if self.short_seq_prob:
        for epoch in epochs:
          rng, _ = self._rotation(sizes, seed, epoch)
          yield 1, batch_size, self._random_cuts(length, rng)
      else:
        yield len(epochs), batch_size, cuts(length, self.seq_len)

  @property
  def _first_late(self) -> int:
    """The first epoch with late_batch_size."""
    if not self.late_batch_size:
      return self.num_epochs
    return self.num_epochs - self.num_epochs // LATE_DIVISOR

  def _epoch(
    self, tokens: np.ndarray, seed: int, gap: int | None, epoch: int
  ) -> Batches:
    parts = _pieces(tokens, seed, gap)
    rng, offsets = self._rotation([*map(len, parts)], seed, epoch)
    if self.random_offsets:
      tokens = np.concatenate([*map(np.roll, parts, offsets)])
    late = epoch >= self._first_late
    batch_size = self.late_batch_size if late else self.batch_size
    batches = make_batches(tokens, batch_size, self.seq_len, gap)
    if self.short_seq_prob:
      length = len(batches.tokens) - 1
      batches = batches._replace(cuts=self._random_cuts(length, rng))
    return batches

  def _rotation(
    self, sizes: list[int], seed: int, epoch: int
  ) -> tuple[np.random.Generator, list[int]]:
    """Return the generator of an epoch, and by how much each piece is rolled.

    The caller draws the cuts of the epoch from this generator afterwards.
    """
    rng = np.random.default_rng([seed, epoch])
    if not self.random_offsets:
      return rng, [0] * len(sizes)
    return rng, [-int(rng.integers(max(1, size))) for size in sizes]

  def _random_cuts(
    self, length: int, rng: np.random.Generator
  ) -> tuple[int, ...]:
    """Cut an epoch into batches of T or T/2 time steps.

    No other lengths occur, because each length is compiled separately.
    """
    half, ends = max(1, self.seq_len // 2), [0]
    while (left := length - ends[-1]) >= half:
      short = rng.random() < self.short_seq_prob or left < self.seq_len
      ends.append(ends[-1] + (half if short else self.seq_len))
    return tuple(ends)


def _pieces(tokens: np.ndarray, seed: int, gap: int | None) -> list[np.ndarray]:
  """Return the pieces of a text; raise ValueError for a wrong argument."""
  check_count("seed", seed, 0)
  return pieces(as_text(tokens), gap)
