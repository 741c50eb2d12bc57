"""A dry run says what a run needs, and writes nothing."""

import re
from pathlib import Path

import jax
import pytest

from experiments.trainer import memory
from experiments.trainer.memory import dry_run, operations, total_operations
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from lstm_jax import lstm
from lstm_jax.language import BatchingConfig
from tests.processes import finish, start


def test_a_dry_run_prints_what_a_run_needs_and_writes_nothing(config, console):
  config = replace(config, ema_decay=0.9)
  needs = dry_run(config, console)
  state = make_setup(config).state_like
  # Weights, their average and Adam's two moments; the rest is small.
  weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert 4 * weights < needs.state_bytes < 4 * weights + 4000
  assert needs.bytes > needs.state_bytes
  shown = console.file.getvalue()
  assert "3 sequences × 8 tokens" in shown
  assert f", {needs.operations / 1e6:,.2f} MFLOP in products\n" in shown
  assert "in 47 steps" in shown
  assert not Path(config.job.run).exists()


@pytest.mark.exhaustive
@pytest.mark.programs
@pytest.mark.parametrize("model", [1, 2])
def test_a_dry_run_on_a_mesh_says_what_each_device_needs(model, config):
  """A device has 1/4 of the batch, and 1/model of the divided weights."""
  size, batch_size, vocabulary = 256, 8, 23  # 23 characters of the corpus
  flags = {
    "corpus": config.data.corpus,
    "hidden_size": size,
    "embedding_size": 32,
    "batch_size": batch_size,
    "seq_len": 8,
    "mesh": f"data:{4 // model},model:{model}",
  }
  options = [f"--{name}={value}" for name, value in flags.items()]
  process = start("experiments.train", "--dry_run", *options, devices=4)
  [(status, shown, errors)] = finish(process)
  assert status == 0, errors
  # w_h and the readout; then the embedding, w_x and both biases.
  divided = size * 4 * size + size * vocabulary
  whole = vocabulary * 32 + 32 * 4 * size + 4 * size + vocabulary
  weights = divided // model + whole
  carry = 2 * batch_size // 4 * size  # h and c
  # MB between two training steps: weights, Adam's two moments, and the carry.
  between = 4 * (3 * weights + carry) / 1e6
  assert f" of memory on each of 4 devices ({between:.2f} MB " in shown
  peak = re.search(r"8 sequences × 8 tokens: ([\d.]+) MB of memory", shown)
  # A training step has the gathered weights and their gradient, and sends them.
  params = size * 4 * size + size * vocabulary + whole
  step, replicated = 4 * params / 1e6, 4 * (3 * params + carry) / 1e6
  # For model=2, the limit is below the peak for model=1, 8.1 MB: it must fall.
  most = 4 if model == 1 else 3.5
  assert between + step < float(peak[1]) < replicated + most * step


def test_one_of_a_kind_is_in_the_singular(config, console):
  config = replace(config, hidden_size=1, batch_size=1, seq_len=1000)
  dry_run(config, console)
  shown = console.file.getvalue()
  assert "1 × 1 hidden unit," in shown
  assert "training    1 epoch of 1,128 tokens, 2 steps\n" in shown
  assert "a step      1 sequence × 1,000 tokens: " in shown


@pytest.mark.exhaustive
def test_a_dry_run_is_of_the_largest_batch(config, console):
  config = replace(config, num_epochs=3)
  wide = dry_run(replace(config, batch_size=9), console)
  late = replace(config, late_batch_size=9)
  assert dry_run(late, console).bytes == wide.bytes
  assert "9 sequences × 8 tokens" in console.file.getvalue()
  # The last third of the epochs has late batches: one of 3, but none of 2.
  dry_run(replace(late, num_epochs=2), console)
  assert "3 sequences × 8 tokens" in console.file.getvalue()
  setup = make_setup(late)
  epochs = [*late.batching.epochs(setup.corpus.train.tokens, 0)]
  assert [batches.tokens.shape[1] for batches in epochs] == [3, 3, 9]
  tokens = [tokens for batches in epochs for tokens, _ in batches.batches()]
  expected = sum(
    operations(setup.state_like.params, one.size, lstm) for one in tokens
  )
  assert total_operations(setup) == expected


@pytest.mark.parametrize("size", [1_000_000, 2_000_000_000])
def test_a_dry_run_of_too_large_a_model_says_that_nothing_would_fit(
  size, config, console
):
  needs = dry_run(replace(config, hidden_size=size), console)
  weights = 4 * 4 * size**2  # 4 bytes for each element of w_h, [H, 4H]
  assert needs.state_bytes > 3 * weights  # with Adam's two moments
  assert needs.bytes > 4 * weights  # with the gradient
  shown = console.file.getvalue()
  assert f"at least {needs.bytes / 1e9:.2f} GB of memory" in shown
  alone = "no batch size would fit: the train state and the gradient alone need"
  assert alone in shown


@pytest.mark.exhaustive
def test_a_dry_run_says_which_batch_would_fit_if_its_own_does_not(
  config, console, monkeypatch
):
  setup = make_setup(replace(config, batch_size=8))
  needs = [memory.footprint(setup, b, 8).bytes for b in (8, 4, 2)]
  for limit, line in ((needs[0], ""), (needs[1], "4 × 8 would need")):
    monkeypatch.setattr(memory, "available_memory", lambda x=limit: x)
    dry_run(replace(config, batch_size=8), console)
    assert ("the device  has" in console.file.getvalue()) == bool(line)
    assert line in console.file.getvalue()


def test_a_dry_run_checks_the_initial_weights(config, console, tmp_path):
  message = "there is no run in .*nowhere: no such directory"
  with pytest.raises(ValueError, match=message):
    dry_run(replace(config, init_from=str(tmp_path / "nowhere")), console)


@pytest.mark.exhaustive
def test_a_dry_run_makes_only_the_first_of_many_epochs(
  config, console, monkeypatch
):
  make_epoch = BatchingConfig._epoch

  def only_the_first(batching, tokens, seed, gap, epoch):
    assert epoch == 0
    return make_epoch(batching, tokens, seed, gap, epoch)

  monkeypatch.setattr(BatchingConfig, "_epoch", only_the_first)
  dry_run(replace(config, num_epochs=10**7, patience=5), console)
  assert f", {47 * 10**7:,} steps\n" in console.file.getvalue()
