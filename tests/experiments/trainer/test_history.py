"""The history of a sweep, and what follows from a run's configuration."""

import hashlib
import json
import shutil
import urllib.request
from itertools import accumulate
from pathlib import Path

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


@pytest.mark.parametrize(
  "changes",
  [{"dev_fraction": 0.3, "batch_size": 5}, {"short_seq_prob": 0.5, "seed": 5}],
  ids=["a gap in the text", "batches of the seed"],
)
def test_the_ends_of_epochs_are_those_of_the_batches(changes, config, tmp_path):
  Path(config.data.corpus).write_text((VERSE + "\n") * 40, encoding="utf-8")
  config = replace(config, num_epochs=3, **changes)
  setup = make_setup(config)
  record = to_record(config) | {"corpus_sha256": setup.corpus.sha256}
  (tmp_path / "config.json").write_text(json.dumps(record))
  ends = [*accumulate(epoch.num_batches for epoch in setup.epochs())]
  found = derive(read_run_history(tmp_path))
  assert found.epoch_ends == ends
  assert found.num_steps == ends[-1] == setup.num_steps
  tokens = setup.corpus.train.tokens  # without the gap, and of another seed:
  assert config.batching.num_steps(tokens, seed=0) != ends[-1]


def test_a_sweep_is_read_from_its_newest_checkpoint_that_can_be_read(tmp_path):
  path, checkpoints = tmp_path / "config.json", tmp_path / "checkpoints"
  record = to_record(SweepConfig(num_seeds=2))
  path.write_text(json.dumps(record))
  one, other = read_run_histories(tmp_path)  # it has no checkpoint yet
  assert (one.rows, other.rows) == ([], [])
  assert (one.member, other.record["seed"]) == ("seed 0 at 0.02", 1)

  writer = CheckpointWriter(checkpoints)
  for step in (4, 8):
    losses = [[(step, None)], [(step, 1.0 / step)]]  # of each member
    progress = Progress(1, losses, (1.0 / step, step), seconds=2.0 * step)
    writer.save(step, {"w": 1.0}, {"progress": progress._asdict()})
  writer.close()
  path.write_text(json.dumps(record | {"num_seeds": 3}))
  with pytest.raises(ValueError, match=r"of 3 members, .* step 8 .* of 2$"):
    read_run_histories(tmp_path)
  path.write_text(json.dumps(record))
  for step in (8, 4):
    one, other = read_run_histories(tmp_path)
    row = {"step": step, "seconds": 2.0 * step}
    assert other.rows == [row | {"val_loss": 1.0 / step}]
    assert one.rows == [row]  # it has diverged
    assert _results(one, None)["training steps"] == f"{step}"
    shutil.rmtree(checkpoints / f"{step}" / "description")
  with pytest.raises(CheckpointError, match="none of the checkpoints"):
    read_run_histories(tmp_path)
