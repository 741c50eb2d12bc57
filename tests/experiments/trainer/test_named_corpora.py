"""Named corpora: downloaded once, checked, and the same in every program."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import ablate, evaluate, explore, sweep, train
from experiments.comparison import corpus as compared
from experiments.trainer import named_corpora, run_dir
from experiments.trainer.data import text_sha256
from experiments.trainer.history import derive, read_run_history
from experiments.trainer.named_corpora import CORPORA, NamedCorpus, locate
from experiments.trainer.records import replace
from experiments.trainer.run_dir import open_run_dir, recorded_flags
from tests.experiments.conftest import VERSES, copy_run
from tests.experiments.evaluating import evaluated
from tests.experiments.sweep.sweeps import as_sweep
from tests.experiments.trainer.resuming import signal_at
from tests.experiments.trainer.serving import serve
from tests.processes import ROOT

TEXT = VERSES.encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def server():
  with serve(TEXT) as running:
    yield running


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache directory not made yet, and a current directory without texts."""
  monkeypatch.setenv("LSTM_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("no_proxy", "*")
  (tmp_path / "cwd").mkdir()
  monkeypatch.chdir(tmp_path / "cwd")
  return tmp_path / "cache"


@pytest.fixture
def named(server, cache, monkeypatch):
  """The server, whose text is the corpus `verse`."""
  monkeypatch.setitem(CORPORA, "verse", server.corpus("/text"))
  return server


def test_the_corpus_of_the_recipes_is_the_file_of_its_commit():
  corpus = CORPORA["tinyshakespeare"]
  assert re.fullmatch(
    r"https://raw\.githubusercontent\.com/karpathy/char-rnn/[0-9a-f]{40}"
    r"/data/tinyshakespeare/input\.txt",
    corpus.url,
  )
  table = (ROOT / "data/README.md").read_text("utf-8")
  assert f"{corpus.num_bytes:,} bytes" in table and corpus.sha256 in table
  copy = os.environ.get("LSTM_JAX_DATA")  # a copy's path, if there is one
  if copy:
    data = Path(copy).read_bytes()
    assert len(data) == corpus.num_bytes
    assert hashlib.sha256(data).hexdigest() == corpus.sha256
    assert text_sha256(data.decode()) == corpus.sha256


def test_a_text_is_downloaded_once_and_then_needs_no_network(
  named, cache, capsys
):
  path = locate("verse")
  assert path == str(cache / "verse.txt")
  assert Path(path).read_bytes() == TEXT
  said = f"downloading {named.url}/text to {path}\n"
  assert capsys.readouterr() == ("", said)
  named.shutdown()
  assert locate("verse") == path
  assert named.paths == ["/text"]
  assert capsys.readouterr() == ("", "")
  assert os.listdir(cache) == ["verse.txt"]


def test_a_redirection_is_followed(server, cache, monkeypatch):
  monkeypatch.setitem(CORPORA, "verse", server.corpus("/moved"))
  assert Path(locate("verse")).read_bytes() == TEXT
  assert server.paths == ["/moved", "/text"]


# Texts that a corpus should have, while the server sends TEXT.
WRONG = b"?" + TEXT[1:]
SHORTER, LONGER = TEXT[:-1], TEXT + b"?"


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("/short", TEXT, f"has {len(TEXT) // 2:,} bytes, not {len(TEXT):,}"),
    ("/text", LONGER, f"has {len(TEXT):,} bytes, not {len(LONGER):,}"),
    ("/text", SHORTER, f"has more bytes, not {len(SHORTER):,}"),
    ("/text", WRONG, f"has the SHA-256 {SHA256}"),
    ("/none", TEXT, "cannot be downloaded: HTTP Error 404: Not Found"),
  ],
)
def test_another_text_is_an_error_that_says_what_is_expected(
  path, text, message, server, cache, monkeypatch
):
  corpus = server.corpus(path, text)
  monkeypatch.setitem(CORPORA, "verse", corpus)
  with pytest.raises(ValueError) as error:
    locate("verse")
  saying = (
    f": save {corpus.url} ({len(text):,} bytes, SHA-256 {corpus.sha256}) as "
    f"{cache / 'verse.txt'}"
  )
  shown = str(error.value)
  if path == "/short":  # how HTTP says so depends on the version of Python
    assert shown.endswith(saying) and "bytes" in shown.removesuffix(saying)
  else:
    assert shown == f"corpus verse {message}{saying}"
  assert "\n" not in shown and not cache.exists()


def test_without_a_network_a_copy_saved_by_hand_is_read(named, cache):
  named.shutdown()
  named.server_close()  # nobody listens
  with pytest.raises(ValueError, match=r"be downloaded: .*refused: save"):
    locate("verse")
  cache.mkdir()
  copy = cache / "verse.txt"
  copy.write_bytes(TEXT[:100])
  wanted = f"100 bytes, not .*: replace it by {re.escape(named.url)}/text "
  with pytest.raises(ValueError, match=f"^{re.escape(str(copy))} has {wanted}"):
    locate("verse")
  copy.write_bytes(TEXT)
  assert locate("verse") == str(copy)


def test_a_server_that_sends_nothing_times_out(cache, monkeypatch):
  monkeypatch.setattr(named_corpora, "TIMEOUT", 0.05)
  with socket.create_server(("127.0.0.1", 0)) as listening:
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/text"
    monkeypatch.setitem(CORPORA, "verse", NamedCorpus(url, 3, SHA256))
    with pytest.raises(ValueError, match="downloaded: timed out: save http"):
      locate("verse")


@pytest.mark.parametrize("place", ["file", "file/verse.txt"])
def test_a_cache_that_cannot_be_used_is_an_error_that_names_it(
  place, named, tmp_path, monkeypatch
):
  """The cache directory is a file, or the copy in it is a directory."""
  if place == "file":
    (tmp_path / place).write_text("")
  else:
    (tmp_path / place).mkdir(parents=True)
  monkeypatch.setenv("LSTM_JAX_CACHE", str(tmp_path / "file"))
  message = "kept or read as .*file/verse.txt: .*; set LSTM_JAX_CACHE to anoth"
  with pytest.raises(ValueError, match=message):
    locate("verse")


@pytest.mark.exhaustive
def test_two_processes_at_once_leave_one_whole_copy(server, cache):
  """Neither gets the text before both have asked for it."""
  code = (
    "from experiments.trainer.named_corpora import *\n"
    f"CORPORA['verse'] = NamedCorpus{tuple(server.corpus('/both'))!r}\n"
    "print(locate('verse'))"
  )
  command = [sys.executable, "-c", code]
  processes = [
    subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  for process in processes:
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, f"{cache / 'verse.txt'}\n")
  assert server.paths == ["/both", "/both"]
  assert (cache / "verse.txt").read_bytes() == TEXT
  assert os.listdir(cache) == ["verse.txt"]


def test_the_cache_directory_is_that_of_the_user(tmp_path, monkeypatch):
  monkeypatch.delenv("LSTM_JAX_CACHE", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert named_corpora.cache_dir() == tmp_path / "lstm_jax"
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  for invalid in ("", "relative"):
    monkeypatch.setenv("XDG_CACHE_HOME", invalid)
    assert named_corpora.cache_dir() == tmp_path / "home/.cache/lstm_jax"

  def homeless():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(Path, "home", homeless)
  with pytest.raises(ValueError, match=r"no home directory .* LSTM_JAX_CACHE"):
    named_corpora.cache_dir()


def test_a_file_hides_the_corpus_of_its_name_and_a_directory_does_not(named):
  Path("verse").mkdir()
  assert locate("verse").endswith("cache/verse.txt")
  assert locate("./verse") == "./verse"
  Path("verse").rmdir()
  Path("verse").write_text("Another text.")
  assert locate("verse") == "verse"
  assert locate("verses") == "verses"


def test_a_run_directory_records_the_name_and_is_resumed_by_it(named, config):
  config = replace(config, corpus="verse")
  facts, flags = {run_dir.SHA256: SHA256}, recorded_flags(config)
  with open_run_dir(flags, facts) as opened:
    directory = opened.directory
    assert not opened.resuming
  assert json.loads((directory / "config.json").read_text())["corpus"] == (
    "verse"
  )
  with open_run_dir(flags, facts) as opened:
    assert opened.resuming
  Path("verse").write_bytes(TEXT)
  flags = recorded_flags(config)
  with open_run_dir(flags, facts) as opened:  # it is the same text
    assert opened.resuming
  with (
    pytest.raises(ValueError, match=r"corpus .*verse has changed"),
    open_run_dir(flags, {run_dir.SHA256: "another"}),
  ):
    pass


@pytest.mark.exhaustive
def test_a_run_is_evaluated_on_the_text_of_that_name(
  named, finished_config, config, console, cache, tmp_path
):
  directory = copy_run(finished_config, replace(config, corpus="verse"))
  assert evaluated(directory, console)["corpus"] == "verse"
  assert named.paths == ["/text"]
  page = explore.run(explore.ExploreConfig(str(directory), length=20), console)
  assert str(tmp_path) not in page.path.read_text("utf-8")
  assert derive(read_run_history(directory))

  # Another file of that name has appeared since.
  Path("verse").write_text("Another text.")
  assert evaluated(directory, console)["corpus"] == "verse"
  shown = console.file.getvalue()
  assert f"corpus  verse is now {cache / 'verse.txt'}\n" in shown
  Path("verse").unlink()

  # The text is not kept, but the current directory has it.
  shutil.move(cache / "verse.txt", "mine.txt")
  evaluated(directory, console)
  assert "corpus  verse is now mine.txt\n" in console.file.getvalue()
  assert named.paths == ["/text"]


def test_a_corpus_whose_file_is_gone_is_found_in_the_cache(
  named, finished, config, console, cache
):
  path = Path(locate("verse"))
  Path(config.data.corpus).unlink()
  evaluated(finished, console)
  assert f"is now {path}\n" in console.file.getvalue()


def test_compare_cells_and_evaluate_take_a_named_corpus(
  named, comparison, finished, config, console
):
  assert compared.read_corpus(replace(comparison, corpus="verse")).tokenizer
  options = evaluate.EvaluateConfig(
    (str(finished),), corpus="verse", protocol=("cold",), end=0.5, begin=0.0
  )
  assert evaluate.run(options, console)["corpus"] == "verse"
  assert named.paths == ["/text"]


@pytest.mark.exhaustive
def test_every_training_takes_a_named_corpus(named, config, console, tmp_path):
  config = replace(config, corpus="verse")
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    train.run(config, console)
  train.run(config, console)  # resumes
  assert (Path(config.job.run) / "result.json").exists()
  many = replace(config, run=str(tmp_path / "many"))
  swept = sweep.run(as_sweep(many, num_seeds=2), console).directory
  ablated = replace(config, run=str(tmp_path / "ablations"))
  ablate.run(ablated, ["seed=1"], console)
  for directory in (swept, tmp_path / "ablations/seed=1"):
    record = json.loads((directory / "config.json").read_text())
    assert record["corpus"] == "verse"
    evaluated(directory, console)
  assert named.paths == ["/text"]
