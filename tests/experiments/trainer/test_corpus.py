"""A corpus by name or path, found again, and its splits and excerpts."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from experiments import ablate, evaluate, explore, sweep, train
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
  split_ranges,
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
from tests.experiments.conftest import VERSES, copy_run, edit_config
from tests.experiments.evaluating import evaluated
from tests.experiments.sweep.sweeps import as_sweep
from tests.experiments.trainer.resuming import stop_at
from tests.experiments.trainer.serving import serve
from tests.processes import ROOT

POEMS = "data/shakespeare.txt"
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


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("/short", TEXT, f".*{len(TEXT) // 2}"),
    ("/text", TEXT + b"?", f"it has {len(TEXT):,} bytes of another text"),
    ("/text", TEXT[:-1], f"it has {len(TEXT):,} bytes of another text"),
    ("/text", b"?" + TEXT[1:], f"it has {len(TEXT):,} bytes of another text"),
    ("/none", TEXT, "HTTP Error 404: Not Found"),
  ],
)
def test_another_text_is_an_error_that_says_what_is_expected(
  path, text, message, server, cache, monkeypatch
):
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
  message = f"from {re.escape(str(copy))}: it has 100 bytes .*; save http"
  with pytest.raises(ValueError, match=message):
    locate("verse")
  copy.write_bytes(TEXT)
  assert locate("verse") == str(copy)


def test_a_server_that_sends_nothing_times_out(cache, monkeypatch):
  monkeypatch.setattr(corpus, "TIMEOUT", 0.05)
  with socket.create_server(("127.0.0.1", 0)) as listening:
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/text"
    monkeypatch.setitem(CORPORA, "verse", NamedCorpus(url, 3, SHA256))
    with pytest.raises(ValueError, match="timed out; save http"):
      locate("verse")


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


def test_the_cache_directory_is_that_of_the_user(tmp_path, monkeypatch):
  monkeypatch.delenv("LSTM_JAX_CACHE", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert corpus.cache_dir() == tmp_path / "lstm_jax"
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  for invalid in ("", "relative"):
    monkeypatch.setenv("XDG_CACHE_HOME", invalid)
    assert corpus.cache_dir() == tmp_path / "home/.cache/lstm_jax"


def test_a_file_hides_the_corpus_of_its_name_and_a_directory_does_not(named):
  Path("verse").mkdir()
  assert locate("verse").endswith("cache/verse.txt")
  assert locate("./verse") == "./verse"
  Path("verse").rmdir()
  Path("verse").write_text("Another text.")
  assert locate("verse") == "verse"
  assert locate("verses") == "verses"


def test_a_pipe_is_no_corpus(config, console):
  """A run reads its text again when it is resumed or evaluated."""
  path = Path(config.data.corpus)
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match=r"verse.txt is not a regular file"):
    train.run(config, console)
  assert not Path(config.job.run).exists()


def test_a_path_that_cannot_be_looked_at_is_no_corpus_and_no_failure(
  finished, config
):
  """A closed directory, or here, also for root, a name that is too long."""
  corpus = Path(config.data.corpus)
  corpus.rename(corpus.with_suffix(".moved"))
  edit_config(finished, corpus=300 * "x")
  assert derive(read_run_history(finished)) is None
  with pytest.raises(ValueError, match=r"^corpus .*File name too long"):
    read_corpus_text(300 * "x")


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


def test_a_corpus_of_the_repository_is_recorded_without_its_directory(
  tmp_path, monkeypatch
):
  """So that results in the repository name no directory of a machine."""
  for cwd, path in (
    (REPOSITORY, POEMS),
    (REPOSITORY / "docs", f"../{POEMS}"),
    (tmp_path, str(REPOSITORY / POEMS)),
  ):
    monkeypatch.chdir(cwd)
    assert recorded_corpus(path) == POEMS
  for path in (REPOSITORY / "experiments/results").rglob("*.json"):
    kept = json.loads(path.read_text("utf-8"))
    assert not os.path.isabs(str(kept.get("corpus"))), path


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


def test_of_two_texts_with_one_name_the_one_with_the_hash_of_the_run_is_found(
  tmp_path, monkeypatch
):
  """data/shakespeare.txt is in the current directory and in the repository."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data").mkdir()
  (tmp_path / POEMS).write_text("Another text of that name.")
  directory = REPOSITORY / "experiments/results/poems"
  history = read_run_history(directory)
  data = history.config.data
  assert data.corpus == POEMS
  assert derive(history)
  own = text_sha256(read_corpus_text(str(REPOSITORY / POEMS)))
  assert history.record[run_dir.SHA256] == own
  # Under any name, a text of the repository is found from any directory.
  for name in (POEMS, "/nowhere/renamed.txt"):
    found = find_corpus(directory, replace(data, corpus=name), own)
    assert found == replace(data, corpus=str(REPOSITORY / POEMS))
  other = text_sha256("Another text of that name.")
  found = find_corpus(directory, data, other)
  assert Path(found.corpus).samefile(tmp_path / POEMS)


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
  stop_at(33, config, console)
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
  assert (corpus.val.text, corpus.test.text) == (
    NUMBERS[864:960],
    NUMBERS[960:],
  )
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


def test_the_default_split_is_dev_or_else_test_or_else_val(data):
  found = read(data)
  assert place(found) == ("val", 1080, 1200, [(0, 1080)])
  assert (found.begin, found.end) == (0.9, 1.0)
  # The validation split is then a tenth (val_fraction) of the first 960.
  found = read(replace(data, test_fraction=0.2))
  assert place(found) == ("test", 960, 1200, [(0, 864)])
  assert (found.begin, found.end) == (0.8, 1.0)
  every = replace(data, test_fraction=0.2, dev_fraction=0.25)
  training = [(0, 324), (540, 864)]
  found = read(every)
  assert place(found) == ("dev", 324, 540, training)
  assert (found.begin, found.end) == (0.27, 0.45)
  assert place(read(every, split="val")) == ("val", 864, 960, training)
  assert place(read(every, split="test")) == ("test", 960, 1200, training)
  assert [*split_ranges(every, NUMBERS)] == ["test", "train", "val", "dev"]


def test_the_training_text_beside_an_excerpt_has_none_of_it(data):
  found = read(replace(data, dev_fraction=0.2), begin=0.25, end=0.75)
  assert place(found) == (None, 300, 900, [(0, 300), (900, 1080)])
  assert (found.begin, found.end) == (0.25, 0.75)
  assert found.text == NUMBERS[300:900]
  assert place(read(data, begin=0.0)) == (None, 0, 1200, [])
  found = read(data, begin=0.5, end=602 / 1200)  # the shortest one
  assert place(found) == (None, 600, 602, [(0, 600), (602, 1080)])
  found = read(data, begin=0.55, end=0.57)  # 1200 · 0.57 is 683.99…
  assert place(found) == (None, 660, 684, [(0, 660), (684, 1080)])
  assert place(read(data, end=0.95)) == (None, 1080, 1140, [(0, 1080)])


def test_the_characters_that_a_run_was_trained_on_are_counted(data):
  assert read(data).trained_on == read(data, end=0.95).trained_on == 0
  assert read(data, begin=0.5).trained_on == 480  # to 1,080
  within = replace(data, dev_fraction=0.2)  # leaves out 432 to 648
  assert read(within).trained_on == 0
  assert read(within, end=0.75).trained_on == 252  # 648 to 900
  # The same holds where --corpus names the same text.
  found = read(within, path=within.corpus, begin=0.5)
  assert found.trained_on == 1080 - 648 and found.training == [(0, 432)]


def test_in_another_text_all_before_the_excerpt_is_training_text(
  data, tmp_path
):
  path = tmp_path / "other.txt"
  path.write_text("x" * 50)
  other = replace(data, test_fraction=0.2, dev_fraction=0.2)
  # The last 20 % of its 50 characters: the share of the test split.
  assert place(read(other, str(path))) == (None, 40, 50, [(0, 40)])
  assert place(read(other, str(path), begin=0.0)) == (None, 0, 50, [])
  assert place(read(other, str(path), end=0.9)) == (None, 40, 45, [(0, 40)])


def test_a_corpus_that_has_changed_is_not_evaluated(data):
  with open(data.corpus, "a") as file:
    file.write("more")
  with pytest.raises(ValueError, match=r"numbers.txt has changed since the"):
    read(data)


def test_an_unknown_character_is_named_with_its_place(data):
  found, tokenizer = read(data), CharTokenizer("\n 0123456789Nbemru")
  assert tokenizer.decode(found.encode(tokenizer, 300, 900)) == NUMBERS[300:900]
  message = "numbers.txt, from character 1,080 on: character 'b' at position 3"
  with pytest.raises(ValueError, match=message):
    found.encode(CharTokenizer("\n 0123456789Nemru"), 1080, 1200)


@pytest.mark.parametrize(
  ("part", "message"),
  [
    ({"split": "dev"}, "no development split: its --dev_fraction is 0"),
    ({"split": "test"}, "no test split: its --test_fraction is 0"),
    ({"split": "val", "begin": 0.5}, "--split=val is a part of .* --begin and"),
    ({"split": "val", "end": 0.5}, "--split=val is a part of .* --begin and"),
    ({"split": "val", "path": ""}, "--split=val is a part of .* without --cor"),
    ({"begin": 0.5, "end": 0.4}, "at least 2 characters between them, got 0.5"),
    ({"begin": 0.5, "end": 601 / 1200}, "at least 2 .*, got 0.5 and 0.50083"),
  ],
)
def test_a_part_that_does_not_exist_is_refused(part, message, data):
  if "path" in part:
    part = part | {"path": data.corpus}
  with pytest.raises(ValueError, match=message):
    read(data, **part)
