import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lstm_jax.language import WordTokenizer, characters, read_text, split, words
from lstm_jax.language.spelling import spelling_nats
from lstm_jax.language.word_tokenizer import UNKNOWN, normal

POEMS = Path(__file__).parents[2] / "data" / "shakespeare.txt"
ANY = st.text() | st.text(" \n\t'\"’-,.!(thoi", min_size=1)
VERSE = """\
'Tis thee, myself, that for myself I praise,
  O'er th' sea feel'st thou--'gainst time's self-will'd scythe?
He said 'I love!' and (blushing) went.

"""


def pieces(text):
  """Return the text of every token apart."""
  vocabulary = words(text, 1)
  return [vocabulary.symbols[token] for token in vocabulary.encode(text)]


@given(ANY)
@example("\n \x85'th' ’tis\u2028--- -")
@example(" '' 'tis'\"\t\"")
@example("<unk> a<unk>")
def test_the_normal_form_has_the_tokens_of_the_text(text):
  once = normal(text)
  assert normal(once) == once
  assert "".join(once.split()) == "".join(text.split())  # blanks alone change
  assert once.count("\n") == text.count("\n")
  if text.split() or "\n" in text:
    vocabulary = words(text, 1)
    tokens = vocabulary.encode_known(text)
    assert tokens.dtype == np.int32
    assert (vocabulary.encode(once) == tokens).all()
    assert vocabulary.decode(tokens) == once
    added = vocabulary.pieces(tokens)
    assert len(added) == len(tokens) and "" not in added
    assert vocabulary.size - 1 not in tokens


@given(ANY, st.integers(0, 20))
def test_the_text_of_a_part_of_the_tokens_is_a_prefix(text, cut):
  if text.split():
    vocabulary = words(text, 1)
    tokens = vocabulary.encode(text)
    whole = vocabulary.decode(tokens)
    assert whole.startswith(vocabulary.decode(tokens[:cut]))


@given(ANY)
def test_no_text_but_an_unknown_word_has_the_token_of_unknown_words(text):
  assert UNKNOWN not in pieces(text + " a")


def test_words_keep_apostrophes_and_marks_do_not():
  assert "|".join(pieces(VERSE)) == (
    "'Tis|thee|,|myself|,|that|for|myself|I|praise|,|\n  |"
    "O'er|th'|sea|feel'st|thou|--|'gainst|time's|self|-|will'd|scythe|?|\n|"
    "He|said| '|I|love|!|'|and|(|blushing|)|went|.|\n|\n"
  )
  assert normal(VERSE) == VERSE


def test_a_blank_that_no_rule_foresees_is_kept():
  text = "a , b,c (d ) x' y - z -- 'so ' on"
  assert normal(text) == text
  assert " ," in pieces(text) and " c" in pieces(text)


def test_the_normal_form_drops_what_it_says():
  assert normal("  A  rose\t\xa0is \n\t a\n  \n") == "A rose is\n  a\n\n"


def test_nearly_every_line_of_the_poems_is_as_it_was():
  """All but the thirteen lines of prose with two blanks after a full stop."""
  text = read_text(POEMS)
  before, after = text.split("\n"), normal(text).split("\n")
  same = [a == b for a, b in zip(before, after, strict=True)]
  assert len(same) - sum(same) == 13
  assert sum(same) / len(same) > 0.997
  assert len(text) - len(normal(text)) == 16


def test_tiny_shakespeare_has_the_vocabulary_that_its_recipe_says():
  path = os.environ.get("LSTM_JAX_DATA")
  if not path:
    pytest.skip("LSTM_JAX_DATA names no copy of Tiny Shakespeare")
  text = read_text(path)
  same = sum(
    a == b
    for a, b in zip(text.split("\n"), normal(text).split("\n"), strict=True)
  )
  assert 40_001 - same == 14
  training, held_out = split(text, 0.1)
  vocabulary = words(training, 2)
  assert vocabulary.size == 7_128
  tokens = vocabulary.encode(held_out)
  assert len(tokens) == 30_285
  assert abs((tokens == vocabulary.size - 1).mean() - 0.0602) < 1e-4


def test_the_vocabulary_is_ordered_by_frequency_and_then_by_name():
  text = "b c a b c d\n"
  vocabulary = words(text, 1)
  assert vocabulary.symbols == ("b", "c", "\n", "a", "d", UNKNOWN)
  assert vocabulary.rare == ()
  frequent = words(text, 2)
  assert frequent == WordTokenizer(("b", "c", UNKNOWN), ("\n", "a", "d"))
  assert frequent.encode("c x\n").tolist() == [1, 2, 2]
  assert frequent.unknown_tokens == (2,)


def test_every_unknown_word_of_a_prompt_is_named():
  vocabulary = words("thee and thou and thee", 2)
  message = r"not in the vocabulary of 2 words: 'compute', ',', '\\n', 'byte'$"
  with pytest.raises(ValueError, match=message) as error:
    vocabulary.encode_known("thee and compute,\nbyte and compute")
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match=r"words: '!', 'thee' spaced like that$"):
    vocabulary.encode_known("thee!thee")


@pytest.mark.parametrize(
  ("text", "min_count", "message"),
  [
    ("a b a", 0, "min_count must be ≥ 1, got 0"),
    ("a b a", 3, "a min_count of 3 leaves no word: the most frequent of 2 occ"),
    (" ", 1, "a min_count of 1 leaves no word: the most frequent of 0 occurs"),
  ],
)
def test_a_count_that_leaves_nothing_is_refused(text, min_count, message):
  with pytest.raises(ValueError, match=message):
    words(text, min_count)


def test_spelling_is_paid_for_unknown_words_alone():
  vocabulary = words("a rose is a rose and unthrift is lost", 2)
  text = "a thrift is ,rose"
  nats = vocabulary.spelling(text)
  assert nats.shape == vocabulary.encode(text).shape
  assert (nats > 0).tolist() == [False, True, False, True, True]
  spelt = spelling_nats(vocabulary.rare, ["thrift", " ,", " rose"])
  assert nats[[1, 3, 4]].tolist() == spelt.tolist()
  assert characters("abc").spelling("abba").tolist() == [0, 0, 0, 0]
