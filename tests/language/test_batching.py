"""Batches of a text, also with a gap: a place where a part was left out."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lstm_jax.language import BatchingConfig, make_batches


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 50))
def test_batches_predict_every_token_but_the_first_once_or_twice(
  batch_size, seq_len, extra
):
  tokens = np.arange(batch_size * seq_len + 1 + extra)
  epoch = make_batches(tokens, batch_size, seq_len)
  inputs, targets = (
    np.concatenate(part) for part in zip(*epoch.batches(), strict=True)
  )
  assert (targets == inputs + 1).all()  # each follows its input in the text
  assert (np.diff(inputs, axis=0) == 1).all()  # contiguous over batches
  counts = np.bincount(targets.ravel(), minlength=len(tokens))
  assert counts[0] == 0
  assert set(counts[1:]) <= {1, 2}
  assert counts.sum() == epoch.tokens_per_epoch < len(tokens) + batch_size
  lengths = [len(batch) for batch, _ in epoch.batches()]
  assert len(lengths) == epoch.num_batches
  assert set(lengths[:-1]) <= {seq_len}
  assert 1 <= lengths[-1] <= seq_len


def test_a_text_that_is_shorter_than_one_batch_is_refused():
  # 3 sequences of 4 tokens, and the target of the last token.
  with pytest.raises(ValueError, match="need at least 13 tokens, got 12"):
    make_batches(np.arange(12), 3, 4)
  shifted = BatchingConfig(batch_size=3, seq_len=4, random_offsets=True)
  for config in (shifted, replace(shifted, random_offsets=False)):
    with pytest.raises(ValueError, match="need at least 13 tokens, got 0"):
      next(config.epochs(np.zeros(0, np.int32), 0))


@pytest.mark.parametrize("random_offsets", [False, True])
@pytest.mark.parametrize("gap", [-1, 0, 30, 31])
def test_a_gap_outside_of_the_text_is_refused(gap, random_offsets):
  config = BatchingConfig(3, 4, random_offsets=random_offsets)
  with pytest.raises(ValueError, match=f"of 30 tokens, got {gap}$"):
    next(config.epochs(np.arange(30), 0, gap))


def test_a_batch_that_an_epoch_does_not_have_is_an_index_error():
  # 4 time steps of 2 sequences: batches of 3 and of 1.
  epoch = make_batches(np.arange(9), 2, 3)
  for index in (-2, -1, 2):
    with pytest.raises(IndexError, match=rf"in \[0, 2\), got {index}$"):
      epoch.batch(index)


@given(
  st.integers(3, 7),
  st.integers(1, 5),
  st.integers(20, 60),
  st.integers(-9, 9),
  st.booleans(),
)
def test_no_sequence_reads_across_a_gap(
  batch_size, seq_len, first, difference, random_offsets
):
  """The text is 0 to first - 1, and 1,000 to 999 + second."""
  second = first + difference
  assume(first + second >= batch_size * seq_len + 2)  # else it is too short
  tokens = np.r_[np.arange(first), 1000 + np.arange(second)]
  config = BatchingConfig(
    batch_size, seq_len, num_epochs=2, random_offsets=random_offsets
  )
  for epoch in config.epochs(tokens, 0, first):
    inputs, targets = epoch.tokens[:-1], epoch.tokens[1:]
    assert ((inputs < 1000) == (targets < 1000)).all()
    for start, end in ((0, first), (1000, 1000 + second)):
      missing = set(range(start, end)) - set(targets.ravel().tolist())
      assert len(missing) == 1  # the first of the piece
    steps = targets - inputs
    assert (steps[steps != 1] < 0).all()  # where a piece is rotated
    assert random_offsets or (steps == 1).all()
  num_steps = config.num_steps(tokens, 0, first)
  assert num_steps == sum(
    e.num_batches for e in config.epochs(tokens, 0, first)
  )


def test_a_gap_between_unequal_pieces_needs_at_least_three_sequences():
  text = np.arange(41)  # the pieces have 19 and 20 targets: 39, or 3 · 13
  for batch_size in (1, 2):
    message = (
      "pieces of 20 and 21 tokens need a batch_size of at least 3, with a "
      f"seq_len of at most 13, got {batch_size} and 4$"
    )
    with pytest.raises(ValueError, match=message):
      make_batches(text, batch_size, 4, 20)
  # One column of 19 time steps in the first piece, and two in the second, which
  # overlap: they begin at 20 and at 21.
  assert make_batches(text, 3, 4, 20).tokens[0].tolist() == [0, 20, 21]
  # 4 sequences of 10 targets, and the first token of each piece.
  with pytest.raises(ValueError, match="need at least 42 tokens, got 41"):
    make_batches(text, 4, 10, 20)


def test_the_error_at_a_gap_names_the_least_batch_size_and_longest_seq_len():
  advice = re.compile(r"batch_size of at least (\d+), .* at most (\d+), got 1 ")
  for first, second in itertools.product(range(2, 12), repeat=2):
    text = np.arange(first + second)
    with pytest.raises(ValueError, match=advice) as error:
      make_batches(text, 1, 1, first)
    least, longest = map(int, advice.search(f"{error.value}").groups())
    for batch_size in range(2, least):
      with pytest.raises(ValueError, match=f"batch_size of at least {least}, "):
        make_batches(text, batch_size, 1, first)
    tokens = make_batches(text, least, longest, first).tokens
    assert tokens.shape[1] == least
    with pytest.raises(ValueError, match="the text is too short"):
      make_batches(text, least, longest + 1, first)


@pytest.mark.parametrize("gap", [1, 19])
def test_a_piece_of_one_token_beside_a_gap_is_refused(gap):
  message = f"must have at least 2 tokens, got {gap} and {20 - gap}$"
  for batch_size in (1, 2, 9):
    with pytest.raises(ValueError, match=message):
      make_batches(np.arange(20), batch_size, 2, gap)


def test_batches_are_int32_and_of_one_text():
  batches = make_batches(list(range(20)), 2, 3)
  assert batches.tokens.dtype == np.int32
  with pytest.raises(ValueError, match=r"integers \[N\], got int64 \(10, 2\)"):
    make_batches(np.arange(20).reshape(10, 2), 2, 3)
  with pytest.raises(ValueError, match=r"integers \[N\], got float64 \(20,\)"):
    make_batches(np.arange(20.0), 2, 3)


@pytest.mark.parametrize("random", [{}, {"random_offsets": True}])
def test_wrong_tokens_and_gaps_are_refused_by_every_function(random):
  config = BatchingConfig(2, 3, short_seq_prob=0.5, **random)
  functions = (
    lambda *args: make_batches(args[0], 2, 3, *args[2:]),  # without the seed
    lambda *args: next(config.epochs(*args)),
    config.num_steps,
    config.epoch_lengths,
    config.batch_shapes,
  )
  text = np.arange(20)
  for tokens, gap, message in (
    (text.reshape(10, 2), None, r"integers \[N\], got int64 \(10, 2\)$"),
    (text / 2, None, r"^tokens must be integers \[N\], got float64 \(20,\)$"),
    (text.astype("m8[s]"), None, r"^tokens must be .*, got timedelta64\[s\] "),
    (np.int32(3), None, r"^tokens must be integers \[N\], got int32 \(\)$"),
    (text + 2**32, None, "fit in an int32, got 4294967296 to 4294967315$"),
    (text.astype(np.uint32) - 1, None, "an int32, got 0 to 4294967295$"),
    (text, 2.5, "^gap must be between two of 20 tokens, got 2.5$"),
    (text, "3", "^gap must be between two of 20 tokens, got '3'$"),
  ):
    for function in functions:
      with pytest.raises(ValueError, match=message):
        function(tokens, 0, gap)


@pytest.mark.parametrize("wrong", [0, 2.0, "2", None])
def test_batches_have_sizes_that_are_integers(wrong):
  message = f"must be an integer ≥ 1, got {wrong!r}$"
  with pytest.raises(ValueError, match=f"^batch_size {message}"):
    make_batches(np.arange(20), wrong, 3)
  with pytest.raises(ValueError, match=f"^seq_len {message}"):
    make_batches(np.arange(20), 2, wrong)


def test_sizes_in_int8_do_not_overflow():
  tokens = np.arange(20_000)
  expected = make_batches(tokens, 100, 64)
  found = make_batches(tokens, np.int8(100), np.int8(64))
  assert found.cuts == expected.cuts
  assert (found.tokens == expected.tokens).all()
  for prob in (0.0, 0.5):
    shapes = [
      BatchingConfig(
        number(100), number(64), number(100), short_seq_prob=prob
      ).batch_shapes(tokens, 0)
      for number in (int, np.int8)
    ]
    assert shapes[0] == shapes[1]
