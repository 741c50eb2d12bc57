"""Whatever comes in, an error is one line: corpora, prompts, flags, metadata.

Each property is tried on as many inputs as its `max_examples` says: together
2,900 (300 of them exhaustive) and, of whole processes, 41.
"""

import dataclasses
import io
import json
import subprocess
import sys

import jax
import pytest
from absl import flags
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from experiments import train
from experiments.report import describe
from experiments.sample import run as write
from experiments.trainer import run_dir
from experiments.trainer.config import (
  TrainConfig,
  model_config,
  optimizer_config,
  reading,
)
from experiments.trainer.data import read_corpus
from experiments.trainer.extract import extract
from experiments.trainer.flags import define_flags
from experiments.trainer.history import read_run_histories
from lstm_jax.language import characters, words
from lstm_jax.training import make_optimizer
from tests.experiments.conftest import VERSE
from tests.processes import ROOT

LOADED = ValueError, OSError, OverflowError  # which programs tell in a line
FIELDS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}


def tries(number):
  return settings(
    max_examples=number,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
  )


def in_a_line(error):
  assert str(error) and "\n" not in str(error), repr(error)


@tries(1000)
@given(data=st.binary(max_size=300), word=st.booleans(), dev=st.booleans())
@example(data=b"", word=False, dev=False)
@example(data=b"\xef\xbb\xbf\r\r\n\x00" * 9, word=True, dev=True)
@example(data="a\u2028b\x85 c ".encode() * 9, word=True, dev=False)
def test_any_bytes_are_a_corpus_or_an_error_of_one_line(
  data, word, dev, tmp_path
):
  path = tmp_path / "corpus"
  path.write_bytes(data)
  config = TrainConfig(
    corpus=str(path),
    tokenizer="word" if word else "character",
    min_count=1,
    development=0.2 if dev else 0.0,
  )
  try:
    corpus = read_corpus(config)
  except ValueError as error:
    in_a_line(error)
    return
  for part in (corpus.training, corpus.watched, corpus.held_out):
    assert len(part.tokens) >= 2
    assert part.tokens.max() < corpus.vocabulary.size
  if not word:
    assert corpus.vocabulary.decode(corpus.training.tokens) == (
      corpus.training.text
    )


@tries(1000)
@given(prompt=st.text(max_size=40))
def test_any_prompt_is_known_or_an_error_that_names_what_is_not(prompt):
  for vocabulary in (characters(VERSE), words(VERSE * 2, 2)):
    try:
      tokens = vocabulary.encode_known(prompt)
    except ValueError as error:
      in_a_line(error)
      assert vocabulary.unit in str(error)
    else:
      assert ((tokens >= 0) & (tokens < vocabulary.size)).all()


def values(name):
  """Return a strategy of what somebody may write for a flag."""
  near = [repr(FIELDS[name]), "0", "1", "-1", "0.5", "nan", "inf", "1e999", ""]
  near += ["2147483647", "99999999999999999999", "lstm", "word", "skip", "sgd"]
  return st.sampled_from(near) | st.text(max_size=6)


@st.composite
def command_lines(draw):
  names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4))
  written = [f"--{name}={draw(values(name))}" for name in names]
  return written + draw(st.lists(st.text(max_size=8), max_size=1))


@pytest.fixture(scope="module")
def training_flags():
  """The flags of the program, among themselves, and their names."""
  before = set(flags.FLAGS)
  names = [holder.name for holder in define_flags()]
  yield names
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@tries(600)
@given(command_lines())
def test_any_flags_are_a_configuration_or_an_error_of_one_line(
  training_flags, tmp_path, argv
):
  corpus = tmp_path / "verse.txt"
  corpus.write_text(VERSE * 20)
  saved = {name: flags.FLAGS[name].default for name in training_flags}
  try:
    rest = flags.FLAGS(["train", *argv])
    given = {name: flags.FLAGS[name].value for name in training_flags}
    config = TrainConfig(**given | {"corpus": str(corpus)})
    small = dataclasses.replace(config, short_seq_prob=0.0)
    updates = reading(small).num_steps(read_corpus(config).training.tokens)
    make_optimizer(optimizer_config(config), updates)
    model_config(config, 9)
    assert 1 <= updates < 2**31 and len(rest) >= 1
  except flags.Error as error:
    assert str(error)  # absl tells it, with status 1
  except LOADED as error:
    in_a_line(error)
  finally:
    flags.FLAGS.unparse_flags()
    for name, default in saved.items():
      flags.FLAGS[name].value = default
      flags.FLAGS[name].present = 0


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A run that others may damage."""
  place = tmp_path_factory.mktemp("fuzzed")
  (place / "verse.txt").write_text(VERSE * 20)
  config = TrainConfig(
    corpus=str(place / "verse.txt"),
    run=str(place / "run"),
    embedding_size=4,
    hidden_size=6,
    batch_size=3,
    seq_len=8,
    num_epochs=1,
    eval_every=50,
    sample_length=5,
  )
  with jax.numpy_dtype_promotion("standard"):
    return train.run(config, Console(file=io.StringIO())).directory


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=6,
)


@pytest.mark.exhaustive
@tries(300)
@given(st.data())
def test_any_metadata_is_read_or_an_error_of_one_line(directory, data):
  """Each of the small files, one value changed, or all of it."""
  (newest,) = directory.glob("checkpoints/47")
  path = data.draw(
    st.sampled_from(
      [
        directory / "config.json",
        newest / "description" / "metadata",
        newest / "seal" / "metadata",
      ]
    )
  )
  good = path.read_text()
  record = json.loads(good)
  if data.draw(st.booleans()):
    name = data.draw(st.sampled_from(sorted(record)))
    record[name] = data.draw(JSON)
  else:
    record = data.draw(JSON)
  path.write_text(json.dumps(record))
  try:
    for read in (
      run_dir.load,
      lambda directory: extract(directory, "", None, 1.0),
      lambda directory: describe(read_run_histories(directory)),
    ):
      try:
        read(directory)
      except LOADED as error:
        in_a_line(error)
  finally:
    path.write_text(good)


def test_prompts_of_any_kind_are_sampled_or_refused(directory):
  options = {"length": 3, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
  options |= {"num_samples": 1, "seed": 0}
  for prompt in ("", "\x00", "é" * 50, "Shall", "\ud800", "<unk>"):
    try:
      (text,) = write(str(directory), prompt=prompt, **options)
    except ValueError as error:
      in_a_line(error)
    else:
      assert text.startswith("Shall") and prompt == "Shall"


LINES = st.lists(
  command_lines().map(" ".join)
  | st.text(max_size=10)
  | st.sampled_from(["--flagfile=x", "# a comment", "--num_epochs=1"]),
  max_size=4,
)
PROCESSES = 40


@pytest.mark.programs
@settings(max_examples=1, suppress_health_check=list(HealthCheck))
@given(
  st.lists(
    st.tuples(command_lines(), LINES, st.binary(max_size=99)),
    min_size=PROCESSES,
    max_size=PROCESSES,
  )
)
def test_any_flagfile_ends_with_a_status_and_leaves_no_folder(tmp_path, inputs):
  """In a process each; the first one's run can begin, and few others'."""
  written = []
  begins = ["--batch_size=1", "--seq_len=1"], [], b"Shall I compare thee?"
  for argv, lines, corpus in [begins, *inputs]:
    flagfile = "\n".join(lines).encode("utf-8", "surrogatepass")
    written.append([argv, flagfile.hex(), corpus.hex()])
  process = subprocess.run(
    [sys.executable, "-m", "tests.experiments.trainer.launching", tmp_path],
    cwd=ROOT,
    input=json.dumps(written),
    text=True,
    capture_output=True,
    timeout=300,
    check=True,
  )
  found = json.loads(process.stdout)
  assert len(found) == PROCESSES + 1
  for what, (status, told, directory) in zip(written, found, strict=True):
    assert status in (0, 1, 2), (what, told)
    assert told and "Traceback" not in told, (what, told)
    assert directory == (status == 0), (what, told)
  assert found[0][0] == 0
