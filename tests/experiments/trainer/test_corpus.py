"""A corpus by name or path, found again, and its splits and excerpts."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from experiments import evaluate, explore, train
from experiments.comparison import cells as compared
from experiments.trainer import corpus, run_dir
from experiments.trainer.config import DataConfig, TrainConfig
from experiments.trainer.corpus import (
  CORPORA,
  REPOSITORY,
  NamedCorpus,
  find_corpus,
  locate,
  read_corpus_text,
  recorded_corpus,
  recorded_path,
  text_sha256,
)
from experiments.trainer.data import (
  default_prompt,
  make_tokenizer,
  read_corpus,
  read_excerpt,
  stored_tokenizer,
)
from experiments.trainer.history import derive, read_run_history
from experiments.trainer.records import replace
from experiments.trainer.run_dir import (
  check_same_run,
  open_run_dir,
  recorded_flags,
)
from lstm_jax.language import CharTokenizer
from tests.experiments.conftest import VERSES, copy_run
from tests.experiments.evaluating import evaluated
from tests.experiments.trainer.resuming import stop_at
from tests.processes import ROOT

POEMS = "data/shakespeare.txt"
TEXT = VERSES.encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


class Server(ThreadingHTTPServer):
  """Serves a text at /text; /moved redirects there, /short sends half of it.

  At /both, a request waits for a second one, and then both are answered.
  """

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server_address[1]}"
    self.paths = []  # those requested, in order
    self.both = threading.Barrier(2, timeout=30)
    self.asked_in_vain = threading.Event()

  def corpus(self, path, text=TEXT):
    """Return a corpus at a path, with the size and the hash of `text`."""
    sha256 = hashlib.sha256(text).hexdigest()
    return NamedCorpus(f"{self.url}{path}", len(text), sha256)


class Handler(BaseHTTPRequestHandler):
  def do_GET(self):
    self.server.paths.append(self.path)
    if self.path == "/silent":
      self.server.asked_in_vain.wait(30)
    if self.path == "/both":
      self.server.both.wait()
    self.send_response({"/moved": 302, "/none": 404}.get(self.path, 200))
    self.send_header("Location", "/text")
    body = b"" if self.path in ("/moved", "/none") else TEXT
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

  def log_message(self, *args):
    pass


@pytest.fixture
def server():
  with Server() as running:
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.asked_in_vain.set()
    running.shutdown()
    thread.join()


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


@pytest.mark.parametrize("path", ["/text", "/moved"])  # the latter redirects
def test_a_text_is_downloaded_once_and_then_needs_no_network(
  path, server, cache, monkeypatch, capsys
):
  monkeypatch.setitem(CORPORA, "verse", server.corpus(path))
  found = locate("verse")
  assert found == str(cache / "verse.txt")
  assert Path(found).read_bytes() == TEXT
  said = f"downloading {server.url}{path} to {found}\n"
  assert capsys.readouterr() == ("", said)
  requested = list(server.paths)
  assert requested[-1] == "/text"
  server.shutdown()
  assert locate("verse") == found
  assert server.paths == requested
  assert capsys.readouterr() == ("", "")
  assert os.listdir(cache) == ["verse.txt"]


@pytest.mark.exhaustive
def test_two_processes_at_once_leave_one_whole_copy(server, cache):
  """Neither gets the text before both have asked for it."""
  code = (
    "from experiments.trainer.corpus import *\n"
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


def test_a_run_directory_records_the_name_and_is_resumed_by_it(named, config):
  config, facts = replace(config, corpus="verse"), {run_dir.SHA256: SHA256}
  with open_run_dir(recorded_flags(config), facts) as opened:
    assert not opened.resuming
  record = json.loads((opened.directory / "config.json").read_text())
  assert record["corpus"] == "verse"
  Path("verse").write_bytes(TEXT)  # the same text
  with open_run_dir(recorded_flags(config), facts) as opened:
    assert opened.resuming
  with (
    pytest.raises(ValueError, match=r"corpus .*/cwd/verse has changed"),
    open_run_dir(recorded_flags(config), {run_dir.SHA256: "another"}),
  ):
    pass


def test_a_corpus_is_the_same_at_any_path(finished, config, tmp_path):
  copy = shutil.copy(config.data.corpus, tmp_path / "copy.txt")
  again = replace(config, corpus=str(copy))
  check_same_run(finished, recorded_flags(again), SHA256, advice="")
  with pytest.raises(ValueError, match="configuration: corpus is "):
    check_same_run(finished, recorded_flags(again), "other", advice="")
  longer, facts = replace(again, num_epochs=2), {run_dir.SHA256: SHA256}
  with open_run_dir(recorded_flags(longer), facts, may_extend=True) as opened:
    assert opened.extended_from == 1


@pytest.mark.exhaustive
def test_a_run_with_a_relative_corpus_is_evaluated_from_any_directory(
  config, console, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = replace(config, corpus="verse.txt")
  stop_at(33, config, console)
  directory = Path(config.job.run)
  record = json.loads((directory / "config.json").read_text())
  assert record["corpus"] == str(tmp_path / "verse.txt")
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  train.run(replace(config, corpus="../verse.txt"), console)  # resumes
  assert (directory / "result.json").exists()
  assert evaluated(directory, console)["corpus"] == record["corpus"]


@pytest.mark.parametrize(
  "place", ["run/renamed.txt", "here.txt", "data/a.txt", "cache"]
)
def test_a_corpus_that_was_moved_is_found_by_its_hash(
  place, named, cache, finished, config, console, tmp_path
):
  Path("data").mkdir()
  Path("bytes.txt").write_bytes(b"\xff")  # a file that is not UTF-8
  Path("verse.txt").write_text("Another text of that name.")
  moved = {
    "run/renamed.txt": tmp_path / place,
    "cache": cache / "verse.txt",
  }.get(place, Path(place))
  if place == "cache":
    locate("verse")
    Path(config.data.corpus).unlink()
  else:
    shutil.move(config.data.corpus, moved)
  assert evaluated(finished, console)["corpus"] == config.data.corpus
  printed = console.file.getvalue()
  assert f"corpus  {config.data.corpus} is now {moved}\n" in printed
  assert derive(read_run_history(finished))
  moved.unlink()
  with pytest.raises(ValueError, match=r"verse.txt cannot be read: no such"):
    evaluated(finished, console)


@pytest.mark.exhaustive
def test_a_run_is_evaluated_on_the_text_of_that_name(
  named, finished_config, config, console, cache, tmp_path
):
  directory = copy_run(finished_config, replace(config, corpus="verse"))
  assert derive(read_run_history(directory)) is None  # it is not downloaded
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


NUMBERS = "".join(f"Number {n:03}\n\n" for n in range(100))  # 1,200 characters


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "numbers.txt"
  path.write_text(NUMBERS)
  return DataConfig(str(path))


def read(data, path="", **part):
  return read_excerpt(data, text_sha256(NUMBERS), path, **part)


def place(excerpt):
  return excerpt.split, excerpt.first, excerpt.last, excerpt.training


def test_characters_that_only_the_validation_split_has_are_known(tmp_path):
  path = tmp_path / "text.txt"
  # The last 10 of the 100 characters are the validation split.
  path.write_text("ab" * 45 + "abx" * 3 + "a")
  corpus = read_corpus(DataConfig(str(path)))
  assert corpus.tokenizer.symbols == "abx"
  assert corpus.train.text == "ab" * 45
  assert corpus.val.tokens.tolist() == [0, 1, 2] * 3 + [0]
  assert corpus.test is None


def test_a_development_split_is_cut_out_of_the_training_split(data):
  every = replace(data, test_fraction=0.2, dev_fraction=0.25)
  corpus = read_corpus(every)
  assert corpus.train.text == NUMBERS[:324] + NUMBERS[540:864]
  assert corpus.train.gap == 324
  assert corpus.tokenizer.decode(corpus.train.tokens) == corpus.train.text
  assert corpus.val.text == NUMBERS[324:540]
  assert corpus.test is None
  corpus = read_corpus(replace(every, dev_fraction=0.0))
  assert corpus.val.text + corpus.test.text == NUMBERS[864:]
  assert len(corpus.test.text) == 240
  assert (corpus.train.text, corpus.train.gap) == (NUMBERS[:864], None)


@pytest.mark.parametrize(
  "kind", get_args(get_type_hints(DataConfig)["tokenizer"])
)
def test_every_tokenizer_has_the_name_of_its_tokens_and_can_be_stored(kind):
  text = "to be or not to be"
  tokenizer = make_tokenizer(DataConfig(tokenizer=kind), text, text)
  assert tokenizer.unit == kind
  fields = json.loads(json.dumps(tokenizer._asdict()))
  assert stored_tokenizer(kind, fields) == tokenizer


def test_a_sample_begins_after_a_line_break_or_the_first_token():
  prompts = [default_prompt(CharTokenizer(s)) for s in ("\t\nab", "ab")]
  assert np.concatenate(prompts).tolist() == [1, 0]


def test_an_unknown_character_is_named_with_its_place(data):
  found, tokenizer = read(data), CharTokenizer("\n 0123456789Nbemru")
  assert tokenizer.decode(found.encode(tokenizer, 300, 900)) == NUMBERS[300:900]
  message = "numbers.txt, from character 1,080 on: character 'b' at position 3"
  with pytest.raises(ValueError, match=message):
    found.encode(CharTokenizer("\n 0123456789Nemru"), 1080, 1200)


EVERY = {"test_fraction": 0.2, "dev_fraction": 0.25}
BOTH = [(0, 324), (540, 864)]  # their training text


@pytest.mark.parametrize(
  ("changes", "part", "expected"),
  [
    # The default is the development split, or else that of the test, or else
    # the validation split: a tenth (val_fraction) of what is left.
    ({}, {}, ("val", 1080, 1200, [(0, 1080)])),
    ({"test_fraction": 0.2}, {}, ("test", 960, 1200, [(0, 864)])),
    (EVERY, {}, ("dev", 324, 540, BOTH)),
    (EVERY, {"split": "val"}, ("val", 864, 960, BOTH)),
    (EVERY, {"split": "test"}, ("test", 960, 1200, BOTH)),
    # The training text beside a part has none of it.
    (
      {"dev_fraction": 0.2},
      {"begin": 0.25, "end": 0.75},
      (None, 300, 900, [(0, 300), (900, 1080)]),
    ),
    ({}, {"begin": 0.0}, (None, 0, 1200, [])),
    (  # the shortest one
      {},
      {"begin": 0.5, "end": 602 / 1200},
      (None, 600, 602, [(0, 600), (602, 1080)]),
    ),
    (  # 1200 · 0.57 is 683.99…
      {},
      {"begin": 0.55, "end": 0.57},
      (None, 660, 684, [(0, 660), (684, 1080)]),
    ),
    ({}, {"end": 0.95}, (None, 1080, 1140, [(0, 1080)])),
    # In another text, of 50 characters, all before the part is training text.
    (EVERY, {"path": "x"}, (None, 40, 50, [(0, 40)])),
    (EVERY, {"path": "x", "begin": 0.0}, (None, 0, 50, [])),
    (EVERY, {"path": "x", "end": 0.9}, (None, 40, 45, [(0, 40)])),
  ],
)
def test_a_part_of_a_text_is_evaluated_beside_its_training_text(
  changes, part, expected, data, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  Path("x").write_text("x" * 50)
  found = read(replace(data, **changes), **part)
  assert place(found) == expected
  _, first, last, _ = expected
  text = "x" * 50 if "path" in part else NUMBERS
  assert found.text == text[first:last]
  assert (found.begin, found.end) == (first / len(text), last / len(text))


def test_the_characters_that_a_run_was_trained_on_are_counted(data):
  within = replace(data, dev_fraction=0.2)  # leaves out 432 to 648
  for changed, part, count in (
    (data, {}, 0),
    (data, {"end": 0.95}, 0),
    (data, {"begin": 0.5}, 480),  # to 1,080
    (within, {}, 0),
    (within, {"end": 0.75}, 252),  # 648 to 900
    # The same holds where --corpus names the same text.
    (within, {"path": within.corpus, "begin": 0.5}, 1080 - 648),
  ):
    assert read(changed, **part).trained_on == count


@pytest.mark.parametrize(
  ("part", "message"),
  [
    ({"split": "dev"}, "no development split: its --dev_fraction is 0"),
    ({"split": "test"}, "no test split: its --test_fraction is 0"),
    ({"split": "val", "begin": 0.5}, "--split=val is a part of .* --begin and"),
    ({"split": "val", "end": 0.5}, "--split=val is a part of .* --begin and"),
    (
      {"split": "val", "path": "numbers.txt"},
      "--split=val .* without --c",
    ),
    ({"begin": 0.5, "end": 601 / 1200}, "at least 2 .*, got 0.5 and 0.50083"),
    ({"text": "more"}, "numbers.txt has changed since the"),
  ],
)
def test_a_part_that_does_not_exist_is_refused(
  part, message, data, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  if text := part.pop("text", None):
    Path(data.corpus).write_text(text)
  with pytest.raises(ValueError, match=message):
    read(data, **part)


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("/short", TEXT, f".*{len(TEXT) // 2}"),
    ("/text", TEXT + b"?", f"it has {len(TEXT):,} bytes of another text"),
    ("/text", TEXT[:-1], f"it has {len(TEXT):,} bytes of another text"),
    ("/text", b"?" + TEXT[1:], f"it has {len(TEXT):,} bytes of another text"),
    ("/none", TEXT, "HTTP Error 404: Not Found"),
    ("/silent", TEXT, ".*timed out"),
  ],
)
def test_another_text_is_an_error_that_says_what_is_expected(
  path, text, message, server, cache, monkeypatch
):
  monkeypatch.setattr(corpus, "TIMEOUT", 0.3)
  wanted = server.corpus(path, text)
  monkeypatch.setitem(CORPORA, "verse", wanted)
  pattern = (
    rf"^corpus verse cannot be read from {wanted.url}: {message}.*; save "
    rf"{wanted.url} \({len(text):,} bytes, SHA-256 {wanted.sha256}\) as "
    f"{re.escape(str(cache))}/verse.txt$"
  )
  with pytest.raises(ValueError, match=pattern):
    locate("verse")
  assert not cache.exists()


def test_without_a_network_a_copy_saved_by_hand_is_read(named, cache):
  named.shutdown()
  named.server_close()  # nobody listens
  with pytest.raises(ValueError, match=r"refused.*; save http"):
    locate("verse")
  cache.mkdir()
  copy = cache / "verse.txt"
  copy.write_bytes(TEXT[:100])
  with pytest.raises(ValueError, match=r"it has 100 bytes .*; save http"):
    locate("verse")
  copy.write_bytes(TEXT)
  assert locate("verse") == str(copy)


def test_the_cache_directory_is_that_of_the_user(tmp_path, monkeypatch):
  monkeypatch.delenv("LSTM_JAX_CACHE", raising=False)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  for base, found in (
    (f"{tmp_path}", "lstm_jax"),
    ("", "home/.cache/lstm_jax"),
    ("relative", "home/.cache/lstm_jax"),
  ):
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    assert corpus.cache_dir() == tmp_path / found


def test_a_file_hides_the_corpus_of_its_name_and_a_pipe_is_refused(named):
  """A run reads its text again when it is resumed or evaluated."""
  Path("verse").mkdir()
  assert locate("verse").endswith("cache/verse.txt")
  assert locate("./verse") == "./verse"
  Path("verse").rmdir()
  os.mkfifo("verse")
  assert locate("verse").endswith("cache/verse.txt")
  with pytest.raises(ValueError, match=r"verse is not a regular file"):
    read_corpus_text("./verse")
  Path("verse").unlink()
  Path("verse").write_text("Another text.")
  assert locate("verse") == "verse"
  assert locate("verses") == "verses"


def test_a_corpus_is_recorded_by_its_name_or_its_path(tmp_path, monkeypatch):
  """One of the repository by its path from there, which names no machine."""
  (tmp_path / "tinyshakespeare").mkdir()
  for cwd, path, recorded in (
    (tmp_path, "tinyshakespeare", "tinyshakespeare"),
    (tmp_path, "verse", f"{tmp_path}/verse"),
    (REPOSITORY, POEMS, POEMS),
    (REPOSITORY / "docs", f"../{POEMS}", POEMS),
    (tmp_path, str(REPOSITORY / POEMS), POEMS),
  ):
    monkeypatch.chdir(cwd)
    assert recorded_corpus(path) == recorded
  for path in (REPOSITORY / "experiments/results").rglob("*.json"):
    kept = json.loads(path.read_text("utf-8"))
    assert not os.path.isabs(str(kept.get("corpus"))), path
  # Runs are no corpora: the directory of this name is meant.
  assert recorded_path("tinyshakespeare") == f"{tmp_path}/tinyshakespeare"
  config = replace(TrainConfig(), init_from="one", teacher=("two", "../three"))
  record = recorded_flags(config)
  assert record["init_from"] == f"{tmp_path}/one"
  assert record["teacher"] == [f"{tmp_path}/two", f"{tmp_path.parent}/three"]


def test_of_two_texts_with_one_name_the_one_with_the_hash_of_the_run_is_found(
  tmp_path, monkeypatch
):
  """data/shakespeare.txt is in the current directory and in the repository."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data").mkdir()
  (tmp_path / POEMS).write_text("Another text of that name.")
  directory = REPOSITORY / "experiments/results/poems"
  history = read_run_history(directory)
  data, own = history.config.data, history.record[run_dir.SHA256]
  assert derive(history)
  # Under any name, a text of the repository is found from any directory.
  for name in (POEMS, "/nowhere/renamed.txt"):
    found = find_corpus(directory, replace(data, corpus=name), own)
    assert found == replace(data, corpus=str(REPOSITORY / POEMS))
  other = text_sha256("Another text of that name.")
  found = find_corpus(directory, data, other)
  assert Path(found.corpus).samefile(tmp_path / POEMS)


def test_compare_cells_and_evaluate_take_a_named_corpus(
  named, comparison, finished, config, console
):
  assert compared.read_corpus(replace(comparison, corpus="verse")).tokenizer
  options = evaluate.EvaluateConfig(
    (str(finished),), corpus="verse", protocol=("cold",), end=0.5, begin=0.0
  )
  assert evaluate.run(options, console)["corpus"] == "verse"
  assert named.paths == ["/text"]
