import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lstm_jax.language import CharTokenizer, WordTokenizer, read_text, split
from lstm_jax.language.spelling import spelling_nats
from lstm_jax.language.word_tokenizer import UNKNOWN, normalize

POEMS = Path(__file__).parents[2] / "data" / "shakespeare.txt"
ANY = st.text() | st.text(" \n\t'\"’-,.!(thoi", min_size=1)
VERSE = """\
'Tis thee, myself, that for myself I praise,
  O'er th' sea feel'st thou--'gainst time's self-will'd scythe?
He said 'I love!' and (blushing) went.

"""


def pieces(text):
  """Return the symbol of each token of a text."""
  tokenizer = WordTokenizer.from_text(text, 1)
  return [tokenizer.symbols[token] for token in tokenizer.encode(text)]


@given(ANY)
@example("\n \x85'th' ’tis\u2028--- -")
@example(" '' 'tis'\"\t\"")
@example("<unk> a<unk>")
def test_the_normal_form_has_the_tokens_of_the_text(text):
  normalized = normalize(text)
  assert normalize(normalized) == normalized
  assert "".join(normalized.split()) == "".join(
    text.split()
  )  # only spaces differ
  assert normalized.count("\n") == text.count("\n")
  if text.split() or "\n" in text:
    tokenizer = WordTokenizer.from_text(text, 1)
    tokens = tokenizer.encode_known(text)
    assert tokens.dtype == np.int32
    assert (tokenizer.encode(normalized) == tokens).all()
    assert tokenizer.decode(tokens) == normalized
    added = tokenizer.pieces(tokens)
    assert len(added) == len(tokens) and "" not in added
    assert tokenizer.size - 1 not in tokens  # the unknown token


@given(ANY, st.integers(0, 20))
def test_the_text_of_the_first_tokens_is_a_prefix(text, cut):
  if text.split():
    tokenizer = WordTokenizer.from_text(text, 1)
    tokens = tokenizer.encode(text)
    whole = tokenizer.decode(tokens)
    assert whole.startswith(tokenizer.decode(tokens[:cut]))


@given(ANY)
def test_no_known_text_has_the_unknown_token(text):
  assert UNKNOWN not in pieces(text + " a")


def test_an_apostrophe_is_part_of_a_word_and_a_quotation_mark_is_not():
  assert "|".join(pieces(VERSE)) == (
    "'Tis|thee|,|myself|,|that|for|myself|I|praise|,|\n  |"
    "O'er|th'|sea|feel'st|thou|--|'gainst|time's|self|-|will'd|scythe|?|\n|"
    "He|said| '|I|love|!|'|and|(|blushing|)|went|.|\n|\n"
  )
  assert normalize(VERSE) == VERSE
  assert pieces("’Tis th’ sea, ’gainst") == [
    "’Tis",
    "th’",
    "sea",
    ",",
    "’gainst",
  ]


def test_a_space_that_no_rule_expects_is_kept():
  text = "a , b,c (d ) x' y - z -- 'so ' on"
  assert normalize(text) == text
  assert " ," in pieces(text) and " c" in pieces(text)


def test_the_rules_know_where_marks_have_spaces():
  before, after = ",;:.!?)]}”’…%'\"-", "([{“‘$-"
  for mark in before:
    assert pieces(f"b{mark} c")[:2] == ["b", mark]
    assert pieces(f"b {mark} c")[1] == " " + mark
  for mark in after:
    assert pieces(f"{mark}b") == [mark, "b"]
    assert pieces(f"{mark} b") == [mark, " b"]
  for mark in "&*/+=_@#~^|<>–—":  # like words, with a space on both sides
    assert pieces(f"a {mark} b") == ["a", mark, "b"]


def test_the_normal_form_changes_spaces_as_its_docstring_says():
  assert normalize("  A  rose\t\xa0is \n\t a\n  \n") == "A rose is\n  a\n\n"


def test_nearly_every_line_of_the_poems_is_in_normal_form():
  """All but thirteen lines with two spaces, most of them after a full stop."""
  text = read_text(POEMS)
  before, after = text.split("\n"), normalize(text).split("\n")
  same = [a == b for a, b in zip(before, after, strict=True)]
  assert len(same) - sum(same) == 13
  assert sum(same) / len(same) > 0.997
  assert len(text) - len(normalize(text)) == 16


def test_tiny_shakespeare_has_the_vocabulary_size_of_its_recipe():
  path = os.environ.get("LSTM_JAX_DATA")
  if not path:
    pytest.skip("LSTM_JAX_DATA names no copy of Tiny Shakespeare")
  text = read_text(path)
  same = sum(
    a == b
    for a, b in zip(text.split("\n"), normalize(text).split("\n"), strict=True)
  )
  assert 40_001 - same == 14  # of 40,001 lines
  training, validation = split(text, 0.1)
  tokenizer = WordTokenizer.from_text(training, 2)
  assert tokenizer.size == 7_128
  tokens = tokenizer.encode(validation)
  assert len(tokens) == 30_285
  unknown = tokens == tokenizer.size - 1
  assert abs(unknown.mean() - 0.0602) < 1e-4


def test_the_vocabulary_is_ordered_by_frequency_and_then_by_name():
  text = "b c a b c d\n"
  tokenizer = WordTokenizer.from_text(text, 1)
  assert tokenizer.symbols == ("b", "c", "\n", "a", "d", UNKNOWN)
  assert tokenizer.rare == ()
  frequent = WordTokenizer.from_text(text, 2)
  assert frequent == WordTokenizer(("b", "c", UNKNOWN), ("\n", "a", "d"))
  assert frequent.encode("c x\n").tolist() == [1, 2, 2]
  assert frequent.unknown_tokens == (2,)


def test_every_unknown_word_of_a_prompt_is_named():
  tokenizer = WordTokenizer.from_text("thee and thou and thee", 2)
  message = r"not in the vocabulary of 2 words: 'compute', ',', '\\n', 'byte'$"
  with pytest.raises(ValueError, match=message) as error:
    tokenizer.encode_known("thee and compute,\nbyte and compute")
  assert "\n" not in str(error.value)
  with pytest.raises(
    ValueError, match=r"words: '!', 'thee' with this spacing$"
  ):
    tokenizer.encode_known("thee!thee")
  spaced = WordTokenizer.from_text("a,b", 1)  # has " b", and not "b"
  with pytest.raises(ValueError, match=r"words: 'b' with this spacing, 'c'$"):
    spaced.encode_known("b c,c")


@pytest.mark.parametrize(
  ("text", "min_count", "message"),
  [
    ("a b a", 0, "min_count must be an integer ≥ 1, got 0"),
    ("a b a", 1.5, "min_count must be an integer ≥ 1, got 1.5"),
    ("a b a", float("nan"), "min_count must be an integer ≥ 1, got nan"),
    ("a b a", 3, "a min_count of 3 leaves no word: the most frequent of 2 occ"),
    (" ", 1, "a min_count of 1 leaves no word: the most frequent of 0 occurs"),
  ],
)
def test_a_min_count_that_leaves_no_word_is_refused(text, min_count, message):
  with pytest.raises(ValueError, match=message):
    WordTokenizer.from_text(text, min_count)


def test_only_unknown_words_have_a_cost_of_spelling():
  training = "a rose is a rose and unthrift is lost"
  tokenizer = WordTokenizer.from_text(training, 2)
  text = "a thrift is ,rose"
  nats = tokenizer.spelling_nats(text)
  assert nats.shape == tokenizer.encode(text).shape
  assert (nats > 0).tolist() == [False, True, False, True, True]
  spelt = spelling_nats(tokenizer.rare, ["thrift", " ,", " rose"])
  assert nats[[1, 3, 4]].tolist() == spelt.tolist()
  characters = CharTokenizer.from_text("abc")
  assert characters.spelling_nats("abba").tolist() == [0, 0, 0, 0]
