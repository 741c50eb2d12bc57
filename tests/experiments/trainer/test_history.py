"""The history of a sweep, and what follows from a run's configuration."""

import hashlib
import json
import shutil
import urllib.request
from itertools import accumulate
from pathlib import Path

import jax
import pytest

from experiments.pages.report import _results
from experiments.trainer import history
from experiments.trainer.corpus import CORPORA, NamedCorpus
from experiments.trainer.data import read_corpus
from experiments.trainer.history import (
  derive,
  read_run_histories,
  read_run_history,
)
from experiments.trainer.records import replace, to_record
from experiments.trainer.setup import make_setup
from experiments.trainer.sweep_members import Progress, SweepConfig
from lstm_jax.training import CheckpointError, CheckpointWriter
from tests.experiments.conftest import VERSE, VERSES, copy_run
from tests.patterns import exact

TEXT = VERSES.encode()


def test_nothing_is_downloaded_and_a_shared_corpus_is_tokenized_once(
  finished_config, config, tmp_path, monkeypatch
):
  monkeypatch.setenv("LSTM_JAX_CACHE", str(tmp_path / "cache"))
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")  # which holds no text
  sha256 = hashlib.sha256(TEXT).hexdigest()
  named = NamedCorpus("http://localhost/verse", len(TEXT), sha256)
  monkeypatch.setitem(CORPORA, "verse", named)
  downloads, reads = [], []

  def urlopen(url, **options):
    downloads.append(url)
    raise OSError("no network")

  def read(data):
    reads.append(data.corpus)
    return read_corpus(data)

  monkeypatch.setattr(urllib.request, "urlopen", urlopen)
  runs = []
  for name in ("one", "two"):
    options = replace(config, corpus="verse", run=str(tmp_path / name))
    runs.append(read_run_history(copy_run(finished_config, options)))
  assert [derive(run) for run in runs] == [None, None]
  assert downloads == []

  (tmp_path / "cache").mkdir()
  (tmp_path / "cache/verse.txt").write_bytes(TEXT)
  monkeypatch.setattr(history, "read_corpus", read)
  history._corpus_facts.cache_clear()
  assert all(derive(run) for run in runs)
  assert reads == ["verse"]


def test_the_ends_of_epochs_leave_out_a_development_split(config, tmp_path):
  """The number of batches depends on the gap that it leaves in the text."""
  Path(config.data.corpus).write_text((VERSE + "\n") * 40, encoding="utf-8")
  config = replace(config, num_epochs=2, dev_fraction=0.3, batch_size=5)
  setup = make_setup(config)
  record = to_record(config) | {"corpus_sha256": setup.corpus.sha256}
  (tmp_path / "config.json").write_text(json.dumps(record))
  found = derive(read_run_history(tmp_path))
  assert found.epoch_ends == [setup.num_steps // 2, setup.num_steps]
  tokens = setup.corpus.train.tokens
  assert config.batching.num_steps(tokens, seed=0) != setup.num_steps  # no gap


def test_nothing_follows_from_a_size_above_jaxs_integers(config, tmp_path):
  config = replace(config, hidden_size=10**12)
  sha256 = hashlib.sha256(Path(config.data.corpus).read_bytes()).hexdigest()
  record = to_record(config) | {"corpus_sha256": sha256}
  (tmp_path / "config.json").write_text(json.dumps(record))
  with jax.enable_x64(False):
    assert derive(read_run_history(tmp_path)) is None


def test_the_ends_of_epochs_are_those_of_the_batches_of_the_seed(
  config, tmp_path
):
  config = replace(config, num_epochs=3, short_seq_prob=0.5, seed=5)
  setup = make_setup(config)
  record = to_record(config) | {"corpus_sha256": setup.corpus.sha256}
  (tmp_path / "config.json").write_text(json.dumps(record))
  ends = [*accumulate(epoch.num_batches for epoch in setup.epochs())]
  found = derive(read_run_history(tmp_path))
  assert found.epoch_ends == ends and found.num_steps == ends[-1]
  tokens = setup.corpus.train.tokens
  assert config.batching.num_steps(tokens, seed=0) != ends[-1]


def test_a_sweep_has_as_many_members_as_its_checkpoint(tmp_path):
  record = to_record(SweepConfig(num_seeds=3))
  (tmp_path / "config.json").write_text(json.dumps(record))
  losses = [[(4, 1.5)], [(4, 1.75)]]  # of each member: (step, loss)
  progress = Progress(1, losses, best=(1.5, 4), seconds=2.0)._asdict()
  writer = CheckpointWriter(tmp_path / "checkpoints")
  writer.save(4, {"w": 1.0}, {"progress": progress})
  writer.close()
  message = "config.json is of 3 members, and the checkpoint of step 4 .* of 2$"
  with pytest.raises(ValueError, match=message):
    read_run_histories(tmp_path)

  record["num_seeds"] = 2
  (tmp_path / "config.json").write_text(json.dumps(record))
  _, second = read_run_histories(tmp_path)
  assert second.rows == [{"step": 4, "val_loss": 1.75, "seconds": 2.0}]


def test_a_sweep_is_read_from_its_newest_checkpoint_that_can_be_read(tmp_path):
  record = to_record(SweepConfig(num_seeds=2))
  (tmp_path / "config.json").write_text(json.dumps(record))
  one, other = read_run_histories(tmp_path)  # it has no checkpoint yet
  assert (one.rows, other.rows) == ([], [])
  assert (one.member, other.record["seed"]) == ("seed 0 at 0.02", 1)

  checkpoints = tmp_path / "checkpoints"
  writer = CheckpointWriter(checkpoints)
  for step in (4, 8):
    losses = [[(step, None)], [(step, 1.0 / step)]]
    progress = Progress(1, losses, (1.0 / step, step), seconds=2.0 * step)
    writer.save(step, {"w": 1.0}, {"progress": progress._asdict()})
  writer.close()
  for step in (8, 4):
    one, other = read_run_histories(tmp_path)
    row = {"step": step, "seconds": 2.0 * step}
    assert other.rows == [row | {"val_loss": 1.0 / step}]
    assert one.rows == [row]  # it has diverged
    assert _results(one, None)["training steps"] == f"{step}"
    shutil.rmtree(checkpoints / f"{step}" / "description")
  message = f"none of the checkpoints in {exact(checkpoints)} can be used"
  with pytest.raises(CheckpointError, match=message):
    read_run_histories(tmp_path)
