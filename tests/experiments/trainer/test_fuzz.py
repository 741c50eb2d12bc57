"""Whatever comes in as a corpus or a prompt, an error is one line."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from experiments.trainer.config import TrainConfig
from experiments.trainer.data import read_corpus
from experiments.trainer.records import replace
from lstm_jax.language import CharTokenizer, WordTokenizer
from lstm_jax.language.word_tokenizer import normalize
from tests.experiments.conftest import VERSE
from tests.experiments.sampled import sample_texts


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


def test_prompts_of_any_kind_are_sampled_or_refused(finished_config):
  run = finished_config.job.run
  for prompt in ("", "\x00", "é" * 50, "Shall", "\ud800", "<unk>"):
    try:
      (text,) = sample_texts(run, prompt=prompt, length=3)
    except ValueError as error:
      check_line(error)
      assert prompt != "Shall"
    else:
      assert text.startswith("Shall") and prompt == "Shall"
