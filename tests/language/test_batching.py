from collections import Counter
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
  with pytest.raises(ValueError, match="need at least 13 tokens, got 12"):
    make_batches(np.arange(12), 3, 4)
  shifted = BatchingConfig(batch_size=3, seq_len=4, random_offsets=True)
  for config in (shifted, replace(shifted, random_offsets=False)):
    with pytest.raises(ValueError, match="need at least 13 tokens, got 0"):
      next(config.epochs(np.zeros(0, np.int32), 0))
    for gap in (-1, 0, 30, 31):
      with pytest.raises(ValueError, match=f"of 30 tokens, got {gap}$"):
        next(config.epochs(np.arange(30), 0, gap))


def test_a_batch_that_an_epoch_does_not_have_is_an_index_error():
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


def test_a_gap_needs_a_sequence_for_each_piece():
  text = np.arange(41)
  for batch_size in (1, 2):
    with pytest.raises(
      ValueError, match="20 and 21 tokens need a larger batch"
    ):
      make_batches(text, batch_size, 4, 20)
  assert make_batches(text, 3, 4, 20).tokens[0].tolist() == [0, 20, 21]
  with pytest.raises(ValueError, match="need at least 42 tokens, got 41"):
    make_batches(text, 4, 10, 20)


def test_every_epoch_has_the_same_batches_by_default():
  tokens = np.arange(47)
  config = BatchingConfig(batch_size=3, seq_len=4, num_epochs=5)
  expected = make_batches(tokens, 3, 4)
  epochs = list(config.epochs(tokens, 0))
  assert len(epochs) == 5
  for epoch in epochs:
    assert (epoch.tokens == expected.tokens).all()
    assert epoch.cuts == expected.cuts
  assert config.num_steps(tokens, 0) == 5 * expected.num_batches


def test_a_random_offset_rotates_the_text():
  tokens = np.arange(50)
  config = BatchingConfig(3, 4, num_epochs=40, random_offsets=True)
  offsets = set()
  for epoch in config.epochs(tokens, 0):
    offset = epoch.tokens[0, 0]
    rotated = make_batches(np.roll(tokens, -offset), 3, 4)
    assert (epoch.tokens == rotated.tokens).all()
    offsets.add(int(offset))
  assert len(offsets) > 15  # 28 of 50 are expected


def test_short_batches_have_half_the_length_and_the_given_probability():
  tokens = np.arange(20_001) % 7
  config = BatchingConfig(2, 10, num_epochs=10, short_seq_prob=0.2)
  lengths = []
  for epoch in config.epochs(tokens, 0):
    batches = [batch for batch, _ in epoch.batches()]
    lengths += [len(batch) for batch in batches]
    whole = np.concatenate(batches)
    assert (whole == epoch.tokens[: len(whole)]).all()  # none skipped
    assert 0 <= len(epoch.tokens) - 1 - len(whole) < 5
    assert whole.size == epoch.tokens_per_epoch
  assert set(lengths) == {5, 10}
  share = lengths.count(5) / len(lengths)
  assert abs(share - 0.2) < 5 * (0.2 * 0.8 / len(lengths)) ** 0.5
  assert len(lengths) == config.num_steps(tokens, 0)
  never_short = BatchingConfig(2, 10, short_seq_prob=1e-12)
  (epoch,) = never_short.epochs(tokens[:41], 0)
  assert epoch.cuts == (0, 10, 20)
  (epoch,) = never_short.epochs(tokens[:51], 0)
  assert epoch.cuts == (0, 10, 20, 25)


def test_half_of_a_single_time_step_is_one():
  always_short = BatchingConfig(2, 1, short_seq_prob=1.0)
  (epoch,) = always_short.epochs(np.arange(7), 0)
  assert epoch.cuts == (0, 1, 2, 3)


def test_the_last_third_of_the_epochs_has_the_late_batch_size():
  for epochs in range(1, 40):
    config = BatchingConfig(2, 4, num_epochs=epochs, late_batch_size=5)
    made = config.epochs(np.arange(50), 0)
    counts = [epoch.tokens.shape[1] for epoch in made]
    late = epochs // 3
    assert counts == [2] * (epochs - late) + [5] * late


def test_equal_seeds_give_equal_batches_and_others_do_not():
  tokens = np.arange(500)

  def first(seed):
    options = {"random_offsets": True, "short_seq_prob": 0.5}
    config = BatchingConfig(2, 8, num_epochs=2, **options)
    made = config.epochs(tokens, seed)
    return [(epoch.tokens[0, 0], epoch.cuts) for epoch in made]

  assert first(0) == first(0) != first(1)
  assert first(0)[0] != first(0)[1]
  assert first(0)[1] != first(1)[0]  # no epoch of another seed


@pytest.mark.parametrize(
  "options, message",
  [
    ({"batch_size": 0}, r"batch_size must be in \[1, inf\), got 0"),
    ({"seq_len": 0}, r"seq_len must be in \[1, inf\), got 0"),
    ({"num_epochs": 0}, r"num_epochs must be in \[1, inf\), got 0"),
    ({"short_seq_prob": 1.5}, r"short_seq_prob must be in \[0, 1\], got 1.5"),
    ({"short_seq_prob": float("nan")}, "short_seq_prob must be in"),
    ({"late_batch_size": -1}, r"late_batch_size must be in \[0, inf\), got -1"),
  ],
)
def test_a_batching_config_out_of_range_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    BatchingConfig(**options)


@pytest.mark.parametrize("late_batch_size", [0, 2, 7])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.4])
@pytest.mark.parametrize("num_epochs", [1, 2, 3, 7])
def test_the_number_of_steps_is_the_number_of_batches(
  late_batch_size, short_seq_prob, num_epochs
):
  tokens = np.arange(101)
  config = BatchingConfig(
    3,
    4,
    num_epochs,
    late_batch_size=late_batch_size,
    short_seq_prob=short_seq_prob,
  )
  total = sum(epoch.num_batches for epoch in config.epochs(tokens, 0))
  assert config.num_steps(tokens, 0) == total


@pytest.mark.parametrize("late_batch_size", [0, 4, 7])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.4])
@pytest.mark.parametrize("num_epochs", [1, 2, 3, 7])
@pytest.mark.parametrize("random_offsets", [False, True])
@pytest.mark.parametrize("gap", [None, 36])
def test_lengths_and_shapes_are_those_of_the_batches(
  late_batch_size, short_seq_prob, num_epochs, random_offsets, gap
):
  tokens = np.arange(101)
  config = BatchingConfig(
    3,
    4,
    num_epochs,
    random_offsets=random_offsets,
    late_batch_size=late_batch_size,
    short_seq_prob=short_seq_prob,
  )
  made = [*config.epochs(tokens, 5, gap)]
  lengths = [epoch.num_batches for epoch in made]
  found = config.epoch_lengths(tokens, 5, gap)
  assert lengths == [length for n, length in found for _ in range(n)]
  assert len(found) <= 2 or short_seq_prob
  assert config.num_steps(tokens, 5, gap) == sum(lengths)
  shapes = Counter(x.shape for epoch in made for x, _ in epoch.batches())
  assert config.batch_shapes(tokens, 5, gap) == shapes


def test_batches_are_counted_without_making_any(monkeypatch):
  """Equal epochs are counted once, so that 10⁸ of them take no time."""
  monkeypatch.setattr("lstm_jax.language.epochs.make_batches", None)
  tokens = np.arange(101)  # 34 time steps of 3 sequences: 8 batches, and a rest
  config = BatchingConfig(3, 4, 10**8)
  assert config.epoch_lengths(tokens, 0) == [(10**8, 9)]
  shapes = {(4, 3): 8 * 10**8, (2, 3): 10**8}
  assert config.batch_shapes(tokens, 0) == shapes
  short = BatchingConfig(3, 4, 50, short_seq_prob=0.5)
  assert len(short.epoch_lengths(tokens, 0)) == 50


def test_more_steps_than_an_int32_can_count_are_refused_at_once():
  with pytest.raises(
    ValueError, match=r"at most 2,147,483,647 .* got 19,327,352,823$"
  ):
    BatchingConfig(3, 4, 2**31 - 1).num_steps(np.arange(101), 0)
  with pytest.raises(
    ValueError, match=r"at most 2,147,483,647 .* got 9(,000){10}$"
  ):
    BatchingConfig(3, 4, 10**30).num_steps(np.arange(101), 0)
  most = BatchingConfig(1, 1, 2**31 - 1)
  assert most.num_steps(np.arange(2), 0) == 2**31 - 1


def test_batches_are_int32_and_of_one_text():
  batches = make_batches(list(range(20)), 2, 3)
  assert batches.tokens.dtype == np.int32
  with pytest.raises(ValueError, match=r"integers \[N\], got int64 \(10, 2\)"):
    make_batches(np.arange(20).reshape(10, 2), 2, 3)
  with pytest.raises(ValueError, match=r"integers \[N\], got float64 \(20,\)"):
    make_batches(np.arange(20.0), 2, 3)


@pytest.mark.parametrize("random", [{}, {"random_offsets": True}])
def test_what_is_no_text_is_refused_by_every_function(random):
  config = BatchingConfig(2, 3, short_seq_prob=0.5, **random)
  functions = (
    lambda *args: make_batches(args[0], 2, 3, *args[2:]),
    lambda *args: next(config.epochs(*args)),
    config.num_steps,
    config.epoch_lengths,
    config.batch_shapes,
  )
  text = np.arange(20)
  for tokens, gap, message in (
    (text.reshape(10, 2), None, r"integers \[N\], got int64 \(10, 2\)$"),
    (text / 2, None, r"^tokens must be integers \[N\], got float64 \(20,\)$"),
    (np.int32(3), None, r"^tokens must be integers \[N\], got int32 \(\)$"),
    (text + 2**32, None, "fit in an int32, got 4294967296 to 4294967315$"),
    (text.astype(np.uint32) - 1, None, "an int32, got 0 to 4294967295$"),
    (text, 2.5, "^gap must be between two of 20 tokens, got 2.5$"),
    (text, "3", "^gap must be between two of 20 tokens, got '3'$"),
  ):
    for function in functions:
      with pytest.raises(ValueError, match=message):
        function(tokens, 0, gap)


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.5])
@pytest.mark.parametrize("seed", [-1, 0.5, None, "0"])
def test_a_seed_is_an_integer_of_at_least_0(short_seq_prob, seed):
  config = BatchingConfig(2, 3, short_seq_prob=short_seq_prob)
  message = f"^seed must be an integer ≥ 0, got {seed!r}$"
  for function in (config.num_steps, lambda *args: next(config.epochs(*args))):
    with pytest.raises(ValueError, match=message):
      function(np.arange(20), seed)


@pytest.mark.parametrize("wrong", [0, 2.0, "2", None])
def test_batches_have_sizes_that_are_integers(wrong):
  message = f"must be an integer ≥ 1, got {wrong!r}$"
  with pytest.raises(ValueError, match=f"^batch_size {message}"):
    make_batches(np.arange(20), wrong, 3)
  with pytest.raises(ValueError, match=f"^seq_len {message}"):
    make_batches(np.arange(20), 2, wrong)


def test_numbers_of_numpy_do_not_overflow():
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
