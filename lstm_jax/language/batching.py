"""Batches of a text for truncated backpropagation through time.

Sequence b of each batch continues sequence b of the previous batch, so that the
recurrent state is carried from batch to batch.

>>> import numpy as np
>>> epoch = make_batches(np.arange(9), batch_size=2, seq_len=3)
>>> [tokens.T.tolist() for tokens, targets in epoch.batches()]
[[[0, 1, 2], [4, 5, 6]], [[3], [7]]]
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lstm_jax.cells.checks import check_count


class Batches(NamedTuple):
  """One epoch of batches.

  Column b of `tokens` is a contiguous piece of the text, and batch k + 1
  continues each column where batch k ends. The columns start evenly spaced in
  the text. Together they predict every token but the first of the text, and
  none more than twice. A text with a gap, where a part has been left out, has
  two pieces. The columns then start evenly spaced in each piece, and none reads
  across the gap. The first token of the second piece is not predicted either,
  and some tokens may be predicted more than twice. With short_seq_prob of
  `BatchingConfig`, the last few tokens of each column may be left out.
  """

  tokens: np.ndarray  # int32 [L + 1, B]: L time steps and the last targets
  cuts: tuple[int, ...]  # batch k reads tokens[cuts[k] : cuts[k + 1]]

  @property
  def num_batches(self) -> int:
    """Number of batches in the epoch; their lengths may differ."""
    return len(self.cuts) - 1

  @property
  def tokens_per_epoch(self) -> int:
    """Number of predictions: a token that is predicted twice counts twice."""
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
    ValueError: batch_size or seq_len is not an integer ≥ 1; tokens are not
      integers [N], or one does not fit in an int32; gap is not between two
      tokens; the text is shorter than one batch; a piece beside the gap has
      only one token; or batch_size is too small for a gap: it must be at least
      2, and more if the lengths of the two pieces differ.
  """
  batch_size = check_count("batch_size", batch_size)
  seq_len = check_count("seq_len", seq_len)
  tokens = as_text(tokens)
  parts = pieces(tokens, gap)
  length, counts = columns([*map(len, parts)], batch_size, seq_len)
  starts, first = [], 0
  for piece, count in zip(parts, counts, strict=True):
    last = first + len(piece) - 1 - length
    starts.append(np.linspace(first, last, count).astype(int))
    first += len(piece)
  rows = np.arange(length + 1)[:, None] + np.concatenate(starts)
  return Batches(tokens[rows], cuts(length, seq_len))


def as_text(tokens: np.ndarray) -> np.ndarray:
  """Return tokens as int32 [N]; raise ValueError if they cannot be that."""
  tokens = np.asarray(tokens)
  # `issubdtype` takes timedelta64 for an integer; its kind is "m".
  if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
    raise ValueError(
      f"tokens must be integers [N], got {tokens.dtype} {tokens.shape}"
    )
  text = tokens.astype(np.int32, copy=False)
  if text is not tokens and (text != tokens).any():
    low, high = tokens.min(), tokens.max()
    raise ValueError(f"tokens must fit in an int32, got {low} to {high}")
  return text


def pieces(tokens: np.ndarray, gap: int | None) -> list[np.ndarray]:
  """Return the pieces of a text on both sides of a gap, or the whole text.

  Raises:
    ValueError: gap is not between two tokens.
  """
  if gap is None:
    return [tokens]
  if not isinstance(gap, int | np.integer) or not 0 < gap < len(tokens):
    raise ValueError(
      f"gap must be between two of {len(tokens)} tokens, got {gap!r}"
    )
  return np.split(tokens, [gap])


def columns(
  sizes: list[int], batch_size: int, seq_len: int
) -> tuple[int, tuple[int, ...]]:
  """Return L, the time steps of a column, and the number of columns per piece.

  Args:
    sizes: number of tokens in each piece of the text; one or two.
    batch_size: B, the number of columns of all pieces.
    seq_len: T.

  Raises:
    ValueError: the text or a piece is too short, or batch_size is too small for
      two pieces.
  """
  needed = batch_size * seq_len + len(sizes)
  if sum(sizes) < needed:
    raise ValueError(
      f"the text is too short: {batch_size} sequences of {seq_len} tokens "
      f"need at least {needed} tokens, got {sum(sizes)}"
    )
  if len(sizes) == 1:
    return math.ceil((sizes[0] - 1) / batch_size), (batch_size,)
  small, large = sorted(sizes)
  if small < 2:
    raise ValueError(
      "each piece of the text beside the gap must have at least 2 tokens, "
      f"got {sizes[0]} and {sizes[1]}"
    )
  # At least one column reads the smaller piece, and so has at most small - 1
  # time steps. All columns have the same length, so that the larger piece needs
  # enough columns of at most that length.
  least = 1 + math.ceil((large - 1) / (small - 1))
  if batch_size < least:
    longest = (small + large - 2) // least  # so that sum(sizes) ≥ needed
    raise ValueError(
      f"no sequence reads across the gap in the text: pieces of {sizes[0]} and "
      f"{sizes[1]} tokens need a batch_size of at least {least}, with a "
      f"seq_len of at most {longest}, got {batch_size} and {seq_len}"
    )
  divisions = [(k, batch_size - k) for k in range(1, batch_size)]
  lengths = [
    max(math.ceil((n - 1) / k) for n, k in zip(sizes, counts, strict=True))
    for counts in divisions
  ]
  length = min(lengths)
  return length, divisions[lengths.index(length)]


def cuts(length: int, seq_len: int) -> tuple[int, ...]:
  """Return `Batches.cuts` of L time steps; the last batch may be shorter."""
  return (*range(0, length, seq_len), length)
