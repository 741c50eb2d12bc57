"""What follows from a run's configuration and its corpus."""

import hashlib
import urllib.request

from experiments.trainer import history
from experiments.trainer.data import read_corpus
from experiments.trainer.history import derive, read_run_history
from experiments.trainer.named_corpora import CORPORA, NamedCorpus
from experiments.trainer.records import replace
from tests.experiments.conftest import VERSE, copy_run

TEXT = VERSE.encode() * 20


def test_nothing_is_downloaded_and_a_shared_corpus_is_tokenized_once(
  finished_config, config, tmp_path, monkeypatch
):
  monkeypatch.setenv("LSTM_JAX_CACHE", str(tmp_path / "cache"))
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")  # there is no text
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
