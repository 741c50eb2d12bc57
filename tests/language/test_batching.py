import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.language import BatchingConfig, make_batches


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 50))
def test_streams_predict_every_token_but_the_first_and_only_once_or_twice(
  batch_size, seq_len, more
):
  tokens = np.arange(batch_size * seq_len + 1 + more)
  streams = make_batches(tokens, batch_size, seq_len)
  inputs, targets = (
    np.concatenate(part) for part in zip(*streams.batches(), strict=True)
  )
  assert (targets == inputs + 1).all()  # each follows its input in the text
  assert (np.diff(inputs, axis=0) == 1).all()  # contiguous, block to block
  counts = np.bincount(targets.ravel(), minlength=len(tokens))
  assert counts[0] == 0
  assert set(counts[1:]) <= {1, 2}
  assert counts.sum() == streams.tokens_per_epoch < len(tokens) + batch_size
  lengths = [len(block) for block, _ in streams.batches()]
  assert len(lengths) == streams.num_batches
  assert set(lengths[:-1]) <= {seq_len}
  assert 1 <= lengths[-1] <= seq_len


def test_a_text_that_fills_no_block_is_refused():
  with pytest.raises(ValueError, match="need at least 13 tokens, got 12"):
    make_batches(np.arange(12), 3, 4)
  with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
    make_batches(np.arange(12), 0, 4)


def test_reading_repeats_the_streams_of_the_text():
  tokens = np.arange(47)
  reading = BatchingConfig(batch_size=3, seq_len=4, num_epochs=5)
  streams = make_batches(tokens, 3, 4)
  epochs = list(reading.epochs(tokens))
  assert len(epochs) == 5
  for epoch in epochs:
    assert (epoch.tokens == streams.tokens).all()
    assert epoch.cuts == streams.cuts
  assert reading.num_steps(tokens) == 5 * streams.num_batches


def test_a_random_offset_turns_the_text_and_loses_none_of_it():
  tokens = np.arange(50)
  reading = BatchingConfig(3, 4, num_epochs=40, random_offsets=True)
  beginnings = set()
  for streams in reading.epochs(tokens):
    first = streams.tokens[0, 0]
    turned = make_batches(np.roll(tokens, -first), 3, 4)
    assert (streams.tokens == turned.tokens).all()
    beginnings.add(int(first))
  assert len(beginnings) > 15  # 28 of 50 are expected


def test_short_blocks_are_half_as_long_and_as_frequent_as_asked():
  tokens = np.arange(20_001) % 7
  reading = BatchingConfig(2, 10, num_epochs=10, short_seq_prob=0.2)
  lengths = []
  for streams in reading.epochs(tokens):
    blocks = list(streams.batches())
    lengths += [len(block) for block, _ in blocks]
    whole = np.concatenate([block for block, _ in blocks])
    assert (whole == streams.tokens[: len(whole)]).all()  # none skipped
    assert 0 <= len(streams.tokens) - 1 - len(whole) < 5
    assert whole.size == streams.tokens_per_epoch
  assert set(lengths) == {5, 10}
  share = lengths.count(5) / len(lengths)
  assert abs(share - 0.2) < 5 * (0.2 * 0.8 / len(lengths)) ** 0.5
  assert len(lengths) == reading.num_steps(tokens)


def test_the_last_third_is_read_in_more_streams():
  for epochs in range(1, 40):
    reading = BatchingConfig(2, 4, num_epochs=epochs, late_batch_size=5)
    counts = [s.tokens.shape[1] for s in reading.epochs(np.arange(50))]
    late = epochs // 3
    assert counts == [2] * (epochs - late) + [5] * late


def test_equal_seeds_read_alike_and_others_do_not():
  tokens = np.arange(500)

  def first(seed):
    options = {"random_offsets": True, "short_seq_prob": 0.5, "seed": seed}
    reading = BatchingConfig(2, 8, num_epochs=2, **options)
    return [(s.tokens[0, 0], s.cuts) for s in reading.epochs(tokens)]

  assert first(0) == first(0) != first(1)
  assert first(0)[0] != first(0)[1]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"num_epochs": 0}, "num_epochs must be ≥ 1, got 0"),
    ({"short_seq_prob": 1.5}, r"short_seq_prob must be in \[0, 1\], got 1.5"),
    ({"short_seq_prob": float("nan")}, "short_seq_prob must be in"),
    ({"late_batch_size": -1}, "late_batch_size must be ≥ 0, got -1"),
  ],
)
def test_a_reading_out_of_range_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    BatchingConfig(**options)


@pytest.mark.parametrize("late_batch_size", [0, 2, 7])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.4])
@pytest.mark.parametrize("num_epochs", [1, 2, 3, 7])
def test_updates_are_counted_as_they_are_made(
  late_batch_size, short_seq_prob, num_epochs
):
  tokens = np.arange(101)
  reading = BatchingConfig(
    3,
    4,
    num_epochs,
    late_batch_size=late_batch_size,
    short_seq_prob=short_seq_prob,
  )
  made = sum(streams.num_batches for streams in reading.epochs(tokens))
  assert reading.num_steps(tokens) == made


def test_more_updates_than_can_be_counted_are_refused_at_once():
  with pytest.raises(ValueError, match="must be ≤ 2,147,483,647, got 19,327"):
    BatchingConfig(3, 4, 2**31 - 1).num_steps(np.arange(101))
