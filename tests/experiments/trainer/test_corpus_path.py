"""A run finds its corpus again: from any directory, moved, or piped."""

import json
import os
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from experiments import explore, sweep, train
from experiments.cli import exit_status
from experiments.trainer import corpus_path
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus_path import (
  KEPT,
  REPOSITORY,
  find_corpus,
  kept_if_piped,
  recorded_corpus,
  recorded_path,
  resumable_corpus,
)
from experiments.trainer.data import text_sha256
from experiments.trainer.history import derive, read_run_history
from experiments.trainer.named_corpora import CACHE, CORPORA, NamedCorpus
from experiments.trainer.records import replace
from experiments.trainer.run_dir import (
  SHA256,
  check_same_run,
  open_run_dir,
  recorded_flags,
)
from experiments.trainer.trained import load
from lstm_jax.language import read_text
from tests.experiments.conftest import VERSES, edit_config
from tests.experiments.evaluating import evaluated
from tests.experiments.sampled import sample_texts
from tests.experiments.sweep.sweeps import as_sweep
from tests.experiments.trainer.resuming import signal_at

POEMS = "data/shakespeare.txt"


@pytest.mark.exhaustive
def test_a_run_with_a_relative_corpus_is_evaluated_from_any_directory(
  config, console, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = replace(config, corpus="verse.txt")
  with pytest.MonkeyPatch.context() as patch:
    signal_at(patch, 33)
    train.run(config, console)
  directory = Path(config.job.run)
  record = json.loads((directory / "config.json").read_text())
  assert record["corpus"] == str(tmp_path / "verse.txt")
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  train.run(replace(config, corpus="../verse.txt"), console)  # resumes
  assert (directory / "result.json").exists()
  assert evaluated(directory, console)["corpus"] == record["corpus"]


@pytest.mark.parametrize("place", ["run/renamed.txt", "here.txt", "data/a.txt"])
def test_a_corpus_that_was_moved_is_found_by_its_hash(
  place, finished, config, console, tmp_path, monkeypatch
):
  cwd = tmp_path / "cwd"
  (cwd / "data").mkdir(parents=True)
  monkeypatch.chdir(cwd)
  (cwd / "bytes.txt").write_bytes(b"\xff")  # a file that is not UTF-8
  (cwd / "verse.txt").write_text("Another text of that name.")
  moved = (tmp_path if place.startswith("run") else cwd) / place
  shutil.move(config.data.corpus, moved)
  assert evaluated(finished, console)["corpus"] == config.data.corpus
  printed = console.file.getvalue()
  shown = moved if place.startswith("run") else place
  assert f"corpus  {config.data.corpus} is now {shown}\n" in printed
  assert derive(read_run_history(finished))
  moved.unlink()
  with pytest.raises(ValueError, match=r"verse.txt cannot be read: no such"):
    evaluated(finished, console)


def test_of_two_texts_with_one_name_the_one_with_the_hash_of_the_run_is_found(
  tmp_path, monkeypatch
):
  """data/shakespeare.txt is in the current directory and in the repository."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data").mkdir()
  (tmp_path / POEMS).write_text("Another text of that name.")
  directory = REPOSITORY / "experiments/results/poems"
  history = read_run_history(directory)
  assert history.config.data.corpus == POEMS
  assert derive(history)
  sha256 = text_sha256("Another text of that name.")
  found = find_corpus(directory, history.config.data, sha256)
  assert Path(found.corpus).samefile(tmp_path / POEMS)
  # Under any name, a text of the repository is found from any directory.
  renamed = replace(history.config.data, corpus="/nowhere/renamed.txt")
  found = find_corpus(tmp_path, renamed, history.record[SHA256])
  assert found == replace(renamed, corpus=str(REPOSITORY / POEMS))


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfa\r\r\nb\n", b"a\r", b"\xff"])
def test_a_text_hashed_in_blocks_has_the_hash_of_read_text(
  data, tmp_path, monkeypatch
):
  monkeypatch.setattr(corpus_path, "BLOCK", 1)
  path = tmp_path / "text.txt"
  path.write_bytes(data)
  try:
    text = read_text(path)
  except ValueError:
    assert not corpus_path._has_hash(path, text_sha256(data.decode("latin1")))
  else:
    assert corpus_path._has_hash(path, text_sha256(text))
    assert not corpus_path._has_hash(path, text_sha256(text + "x"))


def test_a_corpus_that_may_not_be_read_is_looked_for_elsewhere(
  finished, config, tmp_path, monkeypatch
):
  """For example, it is in a directory that this user may not enter."""
  corpus = Path(config.data.corpus)
  (tmp_path / "elsewhere").mkdir()
  copy = shutil.copy(corpus, tmp_path / "elsewhere" / "copy.txt")
  is_file = Path.is_file

  def refusing(path):
    if path == corpus:
      raise PermissionError(13, "Permission denied", str(path))
    return is_file(path)

  monkeypatch.chdir(tmp_path / "elsewhere")
  monkeypatch.setattr(Path, "is_file", refusing)
  record = read_run_history(finished).record
  found = find_corpus(finished, config.data, record["corpus_sha256"])
  assert Path(found.corpus).samefile(copy)


def test_a_corpus_is_recorded_by_its_name_and_a_run_by_its_path(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tinyshakespeare").mkdir()
  assert recorded_corpus("tinyshakespeare") == "tinyshakespeare"
  assert recorded_path("tinyshakespeare") == f"{tmp_path}/tinyshakespeare"
  config = replace(TrainConfig(), init_from="one", teacher=("two", "../three"))
  record = recorded_flags(config)
  assert record["init_from"] == f"{tmp_path}/one"
  assert record["teacher"] == [f"{tmp_path}/two", f"{tmp_path.parent}/three"]


def test_without_a_home_directory_a_corpus_is_found_all_the_same(
  finished, config, tmp_path, monkeypatch
):
  def homeless():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv(CACHE, raising=False)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(Path, "home", homeless)
  shutil.move(config.data.corpus, tmp_path / "moved.txt")
  assert derive(read_run_history(finished))
  sha256 = text_sha256(VERSES)
  monkeypatch.setitem(CORPORA, "verses", NamedCorpus("", len(VERSES), sha256))
  data = replace(config, corpus="verses").data
  assert find_corpus(finished, data, sha256).corpus == "moved.txt"


def test_a_cache_directory_that_is_closed_to_the_user_holds_no_corpus(
  finished, tmp_path, monkeypatch
):
  # A name of 300 characters is too long: it is refused as a closed directory
  # would be, also where the tests run as root.
  monkeypatch.setenv(CACHE, 300 * "x")
  monkeypatch.chdir(tmp_path)
  sha256 = text_sha256(VERSES)
  monkeypatch.setitem(CORPORA, "verses", NamedCorpus("", len(VERSES), sha256))
  edit_config(finished, corpus="verses")
  history = read_run_history(finished)
  data = history.config.data
  assert find_corpus(finished, data, sha256).corpus == "verse.txt"
  Path("verse.txt").unlink()
  assert find_corpus(finished, data, sha256) == data
  assert derive(history) is None


def test_a_corpus_of_the_repository_is_recorded_without_its_directory(
  tmp_path, monkeypatch
):
  """So that results in the repository name no directory of a machine."""
  monkeypatch.chdir(REPOSITORY)
  assert recorded_corpus(POEMS) == POEMS
  monkeypatch.chdir(REPOSITORY / "docs")
  assert recorded_corpus(f"../{POEMS}") == POEMS
  monkeypatch.chdir(tmp_path)
  assert recorded_corpus(str(REPOSITORY / POEMS)) == POEMS
  directory = REPOSITORY / "experiments/results/poems"
  history = read_run_history(directory)
  sha256 = text_sha256((REPOSITORY / POEMS).read_text("utf-8"))
  found = find_corpus(directory, history.config.data, sha256)
  assert found.corpus == str(REPOSITORY / POEMS)
  for path in (REPOSITORY / "experiments/results").rglob("*.json"):
    kept = json.loads(path.read_text("utf-8"))
    assert not os.path.isabs(str(kept.get("corpus"))), path


@pytest.fixture
def piped(config):
  """The config of a run whose corpus is a named pipe, to be read only once."""
  path = Path(config.data.corpus)
  text = path.read_text()
  path.unlink()
  os.mkfifo(path)
  writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
  writer.start()
  yield config
  # If nobody has read the text, the writer still waits for a reader.
  reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  writer.join(timeout=10)
  os.close(reader)
  assert not writer.is_alive()


@pytest.mark.exhaustive
def test_a_piped_corpus_is_kept_for_all_that_follows(piped, console, tmp_path):
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    train.run(piped, console)
  directory = Path(piped.job.run)
  assert (directory / KEPT).read_text() == VERSES
  train.run(piped, console)  # resumes, and reads no pipe
  assert (directory / "result.json").exists()
  moved = directory.rename(tmp_path / "moved")
  assert evaluated(moved, console)["corpus"] == KEPT
  explore.run(explore.ExploreConfig(str(moved)), console)
  assert sample_texts(moved, prompt="Shall", length=5)
  assert derive(read_run_history(moved))
  with pytest.raises(ValueError, match="already holds a finished run"):
    train.run(replace(piped, run=str(moved)), console)


def test_a_corpus_is_the_same_at_any_path(finished, config, tmp_path):
  copy = shutil.copy(config.data.corpus, tmp_path / "copy.txt")
  again, sha256 = replace(config, corpus=str(copy)), text_sha256(VERSES)
  check_same_run(finished, recorded_flags(again), sha256, advice="")
  with pytest.raises(ValueError, match="configuration: corpus is "):
    check_same_run(finished, recorded_flags(again), "other", advice="")
  longer = replace(again, num_epochs=2)
  flags = recorded_flags(longer)
  with open_run_dir(flags, {SHA256: sha256}, may_extend=True) as opened:
    assert opened.extended_from == 1


def test_a_printed_command_reads_a_piped_text_where_it_is_kept(
  piped, console, monkeypatch
):
  directory = Path(piped.job.run)
  arguments = [f"--run={directory}", "--corpus", piped.data.corpus]
  monkeypatch.setattr(sys, "argv", ["train", *arguments])
  exit_status("train", piped, directory, signal.SIGTERM, console)
  *_, command = console.file.getvalue().splitlines()
  kept = f"--corpus={directory / KEPT}"  # of two, the last --corpus counts
  assert shlex.split(command)[-4:] == [*arguments, kept]


def test_a_kept_text_is_read_by_a_run_that_is_resumed_and_by_no_other(piped):
  data, kept = piped.data, Path(piped.job.run) / KEPT
  assert kept_if_piped(piped) == data  # nothing is kept yet
  kept.parent.mkdir()
  kept.write_text(VERSES)
  assert kept_if_piped(piped).corpus == str(kept)
  for changes in ({"overwrite": True}, {"resume": False}, {"run": ""}):
    assert kept_if_piped(replace(piped, **changes)) == data
  other = replace(piped, corpus=shutil.copy(kept, f"{kept}2"))
  assert kept_if_piped(other) == other.data


def test_a_corpus_in_slash_dev_is_read_again_as_the_file_it_links_to(config):
  directory, corpus = Path(config.job.run), config.data.corpus
  assert resumable_corpus(directory, "tinyshakespeare") == "tinyshakespeare"
  assert resumable_corpus(directory, os.path.relpath(corpus)) == (
    os.path.relpath(corpus)
  )
  with open(corpus) as file:
    given = f"/dev/fd/{file.fileno()}"
    assert resumable_corpus(directory, given) == corpus
    Path(corpus).unlink()  # as a shell deletes the file of a here-document
    assert resumable_corpus(directory, given) == str(directory / KEPT)
    assert recorded_corpus(given) == KEPT


@pytest.mark.exhaustive
def test_a_sweep_keeps_a_piped_corpus_too(piped, console):
  directory = sweep.run(as_sweep(piped, num_seeds=2), console).directory
  assert load(directory).config.data.corpus == KEPT
  evaluated(directory, console)
