"""Whatever comes in, an error is one line: corpora, prompts, flags, metadata.

Each property is tried on as many inputs as `tries` says: on 1,000 every day, on
1,900 more in exhaustive tests, which also start the program 41 times.
"""

import json

import pytest
from absl import flags
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from experiments.pages.report import make_page
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import read_corpus
from experiments.trainer.excerpt import read_excerpt
from experiments.trainer.flags import config_from_flags, define_flags
from experiments.trainer.history import read_run_histories
from experiments.trainer.records import replace, to_record
from experiments.trainer.setup import make_model
from experiments.trainer.trained import load
from lstm_jax.language import CharTokenizer, WordTokenizer
from lstm_jax.language.word_tokenizer import normalize
from lstm_jax.training import make_optimizer
from tests.experiments.conftest import VERSE, copy_run
from tests.experiments.sampled import sample_texts
from tests.processes import run_program

EXPECTED = ValueError, OSError, OverflowError  # programs print them in a line
DEFAULTS = to_record(TrainConfig())


def tries(number):
  return settings(
    max_examples=number,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
  )


def check_line(error):
  assert str(error) and "\n" not in str(error), repr(error)


@pytest.mark.exhaustive
@tries(1000)
@given(data=st.binary(max_size=300), word=st.booleans(), test=st.booleans())
@example(data=b"", word=False, test=False)
@example(data=b"\xef\xbb\xbf\r\r\n\x00" * 9, word=True, test=True)
@example(data="a\u2028b\x85 c ".encode() * 9, word=True, test=False)
def test_any_bytes_are_a_corpus_or_an_error_of_one_line(
  data, word, test, tmp_path
):
  path = tmp_path / "corpus"
  path.write_bytes(data)
  config = replace(
    TrainConfig(),
    corpus=str(path),
    tokenizer="word" if word else "character",
    min_count=1,
    test_fraction=0.2 if test else 0.0,
  )
  try:
    corpus = read_corpus(config.data)
  except ValueError as error:
    check_line(error)
    return
  assert (corpus.test is not None) == test
  for part in (corpus.train, corpus.val, corpus.test or corpus.val):
    assert len(part.tokens) >= 2
    assert part.tokens.max() < corpus.tokenizer.size
  if not word:
    assert corpus.tokenizer.decode(corpus.train.tokens) == corpus.train.text


WORDS = st.lists(st.sampled_from(VERSE.split()), max_size=5)


@tries(1000)
@given(prompt=st.text(max_size=40) | WORDS.map(" ".join))
def test_any_prompt_is_known_or_an_error_that_names_what_is_unknown(prompt):
  for tokenizer, symbols_of, text in (
    (CharTokenizer.from_text(VERSE), list, prompt),
    (WordTokenizer.from_text(VERSE, 1), word_symbols, normalize(prompt)),
  ):
    try:
      tokens = tokenizer.encode_known(prompt)
    except ValueError as error:
      check_line(error)
      symbols = symbols_of(prompt)
      unknown = next(s for s in symbols if s not in tokenizer.symbols)
      assert repr(unknown.removeprefix(" ")) in str(error)
    else:
      assert tokenizer.decode(tokens) == text


def word_symbols(text):
  return WordTokenizer.from_text(text, 1).symbols


def values(name):
  """Return a strategy of what a user may write for a flag."""
  near = [
    repr(DEFAULTS[name]),
    "0",
    "1",
    "-1",
    "0.5",
    "nan",
    "inf",
    "1e999",
    "",
  ]
  near += ["2147483647", "99999999999999999999", "lstm", "word"]
  near += ["skip", "sgd"]
  return st.sampled_from(near) | st.text(max_size=6)


@st.composite
def command_lines(draw):
  names = draw(st.lists(st.sampled_from(sorted(DEFAULTS)), max_size=4))
  arguments = [f"--{name}={draw(values(name))}" for name in names]
  return arguments + draw(st.lists(st.text(max_size=8), max_size=1))


@pytest.mark.exhaustive
@tries(600)
@given(command_lines())
def test_any_flags_are_a_configuration_or_an_error_of_one_line(tmp_path, argv):
  corpus = tmp_path / "verse.txt"
  corpus.write_text(VERSE * 20)
  flag_values = flags.FlagValues()
  holders = define_flags(TrainConfig(), flag_values)
  try:
    rest = flag_values(["train", *argv])
    config = config_from_flags(TrainConfig(), holders)
    # With short_seq_prob, num_steps would draw each epoch, of up to 2³¹.
    config = replace(config, corpus=str(corpus), short_seq_prob=0.0)
    read = read_corpus(config.data)
    num_steps = config.batching.num_steps(read.train.tokens, config.seed)
    make_optimizer(config.optimizer, num_steps)
    make_model(config, read.tokenizer.size, None)
    assert 1 <= num_steps < 2**31 and len(rest) >= 1
  except flags.Error as error:
    assert str(error)  # a line for each flag, which a program joins
  except EXPECTED as error:
    check_line(error)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, finished_config):
  """A copy of a finished run, which tests damage and mend."""
  place = tmp_path_factory.mktemp("fuzzed") / "run"
  return copy_run(finished_config, replace(finished_config, run=str(place)))


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=6,
)


def read_model(directory):
  trained = load(directory)
  sha256 = trained.corpus_sha256
  read_excerpt(trained.config.data, sha256)


def read_history(directory):
  make_page(read_run_histories(directory))


@pytest.mark.exhaustive
@tries(300)
@given(st.data())
def test_any_metadata_is_read_or_an_error_of_one_line(directory, data):
  """One value of a small file is changed, or all of the file."""
  (newest,) = directory.glob("checkpoints/47")
  path = data.draw(
    st.sampled_from(
      [
        directory / "config.json",
        newest / "description" / "metadata",
        newest / "checksums" / "metadata",
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
    for read in (read_model, read_history):
      try:
        read(directory)
      except EXPECTED as error:
        check_line(error)
  finally:
    path.write_text(good)


def test_prompts_of_any_kind_are_sampled_or_refused(directory):
  for prompt in ("", "\x00", "é" * 50, "Shall", "\ud800", "<unk>"):
    try:
      (text,) = sample_texts(directory, prompt=prompt, length=3)
    except ValueError as error:
      check_line(error)
      assert prompt != "Shall"
    else:
      assert text.startswith("Shall") and prompt == "Shall"


LINES = st.lists(
  command_lines().map(" ".join)
  | st.text(max_size=10)
  | st.sampled_from(["--flagfile=x", "# a comment", "--num_epochs=1"]),
  max_size=4,
)
PROCESSES = 40


@pytest.mark.exhaustive
@pytest.mark.programs
@settings(
  max_examples=1,
  phases=[Phase.generate],  # each try to shrink would start 41 processes
  suppress_health_check=list(HealthCheck),
)
@given(
  st.lists(
    st.tuples(command_lines(), LINES, st.binary(max_size=99)),
    min_size=PROCESSES,
    max_size=PROCESSES,
    unique_by=repr,  # else the only example has one input 40 times
  )
)
def test_any_flagfile_ends_with_a_status_and_an_error_leaves_no_directory(
  tmp_path, inputs
):
  """Each input has its own process. The first starts a run; few others do."""
  cases = []
  starts = ["--batch_size=1", "--seq_len=1"], [], b"Shall I compare thee?"
  for argv, lines, corpus in [starts, *inputs]:
    flagfile = "\n".join(lines).encode("utf-8", "surrogatepass")
    cases.append([argv, flagfile.hex(), corpus.hex()])
  (tmp_path / "inputs.json").write_text(json.dumps(cases))
  module = "tests.experiments.trainer.launching"
  results = json.loads(run_program(module, tmp_path))
  assert len(results) == PROCESSES + 1
  for case, (status, output, directory) in zip(cases, results, strict=True):
    assert status in (0, 2), (case, output)
    assert output and "Traceback" not in output, (case, output)
    assert directory == (status == 0), (case, output)
  assert results[0][0] == 0
