"""Epochs of batches, random or not, and how many batches they have."""

from collections import Counter

import numpy as np
import pytest

from lstm_jax.language import BatchingConfig, make_batches


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
  # 2 sequences of 20 and of 25 time steps, with batches from cut to cut.
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
    assert {*config.batch_sizes} == {*counts}


def test_equal_seeds_give_equal_batches_and_others_do_not():
  tokens = np.arange(500)

  def drawn(seed):
    options = {"random_offsets": True, "short_seq_prob": 0.5}
    config = BatchingConfig(2, 8, num_epochs=2, **options)
    made = config.epochs(tokens, seed)
    return [(epoch.tokens[0, 0], epoch.cuts) for epoch in made]

  assert drawn(0) == drawn(0) != drawn(1)
  assert drawn(0)[0] != drawn(0)[1]
  assert drawn(0)[1] != drawn(1)[0]  # seed and epoch are not added


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


@pytest.mark.parametrize("late_batch_size", [0, 4, 7])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.4])
@pytest.mark.parametrize("num_epochs", [1, 2, 3, 7])
@pytest.mark.parametrize("random_offsets", [False, True])
@pytest.mark.parametrize("gap", [None, 36])
def test_steps_lengths_and_shapes_are_those_of_the_batches(
  late_batch_size, short_seq_prob, num_epochs, random_offsets, gap
):
  tokens = np.arange(101)
  config = BatchingConfig(
    5,
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
  # 34 time steps of 3 sequences: 8 batches of 4 time steps, and one of 2.
  tokens = np.arange(101)
  config = BatchingConfig(3, 4, 10**8)
  assert config.epoch_lengths(tokens, 0) == [(10**8, 9)]
  shapes = {(4, 3): 8 * 10**8, (2, 3): 10**8}
  assert config.batch_shapes(tokens, 0) == shapes
  short = BatchingConfig(3, 4, 50, short_seq_prob=0.5)
  assert len(short.epoch_lengths(tokens, 0)) == 50


def test_more_steps_than_an_int32_can_count_are_refused_at_once():
  # Each epoch has 9 batches: 34 time steps, 4 in a batch.
  with pytest.raises(
    ValueError, match=r"at most 2,147,483,647 .* got 19,327,352,823$"
  ):
    BatchingConfig(3, 4, 2**31 - 1).num_steps(np.arange(101), 0)
  with pytest.raises(
    ValueError, match=r"at most 2,147,483,647 .* got 9(,000){10}$"
  ):
    BatchingConfig(3, 4, 10**30).num_steps(np.arange(101), 0)
  for late in (0, 1):
    most = BatchingConfig(1, 1, 2**31 - 1, late_batch_size=late)
    assert most.num_steps(np.arange(2), 0) == 2**31 - 1


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.5])
@pytest.mark.parametrize("seed", [-1, 0.5, None, "0"])
def test_a_seed_is_an_integer_of_at_least_0(short_seq_prob, seed):
  config = BatchingConfig(2, 3, short_seq_prob=short_seq_prob)
  message = f"^seed must be an integer ≥ 0, got {seed!r}$"
  for function in (config.num_steps, lambda *args: next(config.epochs(*args))):
    with pytest.raises(ValueError, match=message):
      function(np.arange(20), seed)


def test_random_offsets_rotate_the_pieces_beside_a_gap_separately():
  tokens = np.arange(50)
  config = BatchingConfig(3, 4, num_epochs=40, random_offsets=True)
  offsets = []
  for epoch in config.epochs(tokens, 0, 20):
    first, second = epoch.tokens[0, :2]  # of 20 tokens: 1 column; of 30: 2
    pieces = np.roll(tokens[:20], -first), np.roll(tokens[20:], 20 - second)
    rotated = make_batches(np.concatenate(pieces), 3, 4, 20)
    assert (epoch.tokens == rotated.tokens).all()
    offsets.append((int(first), int(second)))
  # Of 20 and 30 offsets, 17 and 22 are expected; of 600 pairs, 39.
  assert all(len({*each}) > 12 for each in zip(*offsets, strict=True))
  assert len({*offsets}) > 30
