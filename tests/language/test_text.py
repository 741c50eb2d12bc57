import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.language import (
  CharTokenizer,
  WordTokenizer,
  middle_slice,
  read_text,
  split,
)
from lstm_jax.language.text import PARAGRAPH

POEMS = Path(__file__).parents[2] / "data" / "shakespeare.txt"


@given(st.text(min_size=1))
def test_decode_is_the_inverse_of_encode(text):
  tokenizer = CharTokenizer.from_text(text)
  tokens = tokenizer.encode(text)
  assert tokens.dtype == np.int32
  assert tokenizer.decode(tokens) == text
  assert tokenizer.size == len(set(text)) == int(tokens.max()) + 1


@pytest.mark.parametrize(
  "tokenizer",
  [CharTokenizer.from_text("to be"), WordTokenizer.from_text("to be or", 1)],
  ids=["char", "word"],
)
def test_tokens_that_are_not_of_the_vocabulary_have_no_text(tokenizer):
  assert tokenizer.decode([]) == "" and tokenizer.decode([0, 1])
  for tokens in ([-1], [0, tokenizer.size], [0.5]):
    with pytest.raises(ValueError, match=r"^tokens must be integers in \[0, "):
      tokenizer.decode(tokens)
  with pytest.raises(ValueError, match=r"^tokens must be \[N\], got \(1, 2\)$"):
    tokenizer.decode(np.array([[0, 1]]))
  for token in (-1, tokenizer.size, 0.5, "t"):
    added = tokenizer.each_piece(iter([0, token]))
    assert next(added) == tokenizer.decode([0])
    with pytest.raises(ValueError, match=rf"^tokens must be .*, got {token}$"):
      next(added)
  for tokens, dtype in (
    (["t", "o"], "<U1"),
    ([0, None], "object"),
    (np.array([0, 1], "timedelta64[s]"), r"timedelta64\[s\]"),
  ):
    with pytest.raises(ValueError, match=rf"integers in .*, got {dtype}$"):
      tokenizer.decode(tokens)


def test_the_vocabulary_is_sorted_for_any_order_of_the_text():
  for text in ("zebra", "arbez"):
    assert CharTokenizer.from_text(text).symbols == "aberz"


def test_an_unknown_character_is_named_with_its_position():
  tokenizer = CharTokenizer.from_text("abc")
  for text, name in (
    ("abcabdx", "'d' at position 5"),
    ("é", "'é' at posi"),
    ("a\udc80", r"'\\udc80' at position 1"),  # a byte that is not UTF-8
  ):
    with pytest.raises(ValueError, match=name):
      tokenizer.encode(text)
  with pytest.raises(ValueError, match="at least one character"):
    CharTokenizer.from_text("")


def test_the_poems_are_those_that_their_readme_describes():
  data = POEMS.read_bytes()
  digest = hashlib.sha256(data).hexdigest()
  assert len(data) == 205_315
  assert data.isascii() and b"\r" not in data
  assert data.count(b"\n\n\n") == 4  # two blank lines
  assert b"\n\n\n\n" not in data
  assert CharTokenizer.from_text(read_text(POEMS)).size == 64
  assert digest in (POEMS.parent / "README.md").read_text(encoding="utf-8")


def test_a_split_of_a_round_number_of_tokens_is_exact():
  assert [len(part) for part in split(np.arange(100), 0.9)] == [10, 90]


def test_a_part_of_two_tokens_is_long_enough():
  assert [len(part) for part in split("abcdefghij", 0.2)] == [8, 2]
  assert [len(part) for part in split("abcdefghij", 0.8)] == [2, 8]


SPEECH = "ROMEO:\nBut that a joy.\n\n"


def test_a_slice_of_the_middle_has_whole_speeches():
  text = SPEECH * 100
  for fraction in (0.05, 0.3, 0.501):
    first, last = middle_slice(text, fraction)
    assert text[:first].endswith("joy.\n\n")
    assert text[first:last].startswith("ROMEO:")
    assert text[last:].startswith("ROMEO:")
    half = len(SPEECH) / 2
    assert abs(first - len(text) * (1 - fraction) / 2) <= half
    assert abs(last - len(text) * (1 + fraction) / 2) <= half


def paragraphs_by_line(text):
  """Return where lines after blank ones begin, by a loop over lines."""
  starts, place, blank = [], 0, 0
  for number, line in enumerate(text.splitlines(keepends=True)):
    # At the beginning of a text, one blank line does not suffice, but two do.
    if line.strip() and blank and number > 1:
      starts.append(place)
    blank = 0 if line.strip() else blank + 1
    place += len(line)
  return starts


@given(st.text(" \tax\n", max_size=40))
def test_paragraphs_begin_after_blank_lines(text):
  found = [match.end() for match in PARAGRAPH.finditer(text)]
  assert found == paragraphs_by_line(text)


def test_many_blank_lines_are_read_in_no_time():
  text = SPEECH * 9_000 + "\n" * 200_000  # nothing follows the blank lines
  begun = time.monotonic()
  first, last = middle_slice(text, 0.2)
  assert time.monotonic() - begun < 5  # quadratic time is many minutes
  assert 0 < first < last


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.5, float("nan")])
def test_a_slice_of_all_or_nothing_is_refused(fraction):
  with pytest.raises(ValueError, match=r"^fraction must be in \(0, 1\), got"):
    middle_slice(SPEECH * 100, fraction)


@pytest.mark.parametrize("heading", ["SCENE II.", "Act 3, Scene iv", " ACT I"])
def test_a_slice_of_the_middle_begins_at_a_scene_that_is_near(heading):
  begin, end = (int(100 * share) * len(SPEECH) for share in (0.38, 0.7))
  scene = f"{heading} Verona.\n\n"
  text = SPEECH * 100
  text = text[:begin] + scene + text[begin:end] + scene + text[end:]
  first, last = middle_slice(text, 0.2)  # 0.4 to 0.6: the other is too far
  assert text[first:].startswith(scene)
  assert text[last:].startswith("ROMEO:")
  assert abs(last - 0.6 * len(text)) <= len(SPEECH)


def test_a_scene_within_a_quarter_of_the_length_of_a_slice_is_near():
  def cut(distance):  # of a scene from where the slice would begin, at 400
    text, at = "x\n\n" * 333 + "x", 400 - distance
    text = text[: at - 2] + "\n\nSCENE I\n\n" + text[at + 9 :]
    return middle_slice(text, 0.2)[0]

  # Of 1,000 characters 200 are requested: a quarter of these is 50.
  assert cut(50) == 350 and cut(51) > 390


def test_words_like_headings_are_no_headings():
  text = (SPEECH + "SCENES of war.\n\nActing on it\n\nact in time\n\n") * 50
  first, _ = middle_slice(text, 0.2)
  assert abs(first - 0.4 * len(text)) <= len(SPEECH) / 2


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("one\ntwo\n" * 100, "0 begin after a blank line, and the nearest leave 0"),
    (SPEECH * 4, "between paragraphs: 3 begin after a blank line"),
    ("a\n\n" + "b" * 300 + "\n\nc", "the nearest leave 302"),
  ],
)
def test_a_text_of_too_few_paragraphs_has_no_slice(text, message):
  with pytest.raises(ValueError, match=message):
    middle_slice(text, 0.1)


def test_a_slice_has_half_to_twice_the_length_that_was_asked_for():
  def cut(length):
    first = 500 - length // 2
    parts = "a" * (first - 2), "b" * (length - 2), "c" * 1000
    return middle_slice("\n\n".join(parts)[:1000], 0.1), first

  for length in (50, 200):
    (first, last), expected = cut(length)
    assert (first, last) == (expected, expected + length)
  for length in (49, 201):
    message = f"and the nearest leave {length} characters$"
    with pytest.raises(ValueError, match=message):
      cut(length)


def test_tiny_shakespeare_is_split_as_in_nanogpt():
  path = os.environ.get("LSTM_JAX_DATA")
  if not path:
    pytest.skip("LSTM_JAX_DATA names no copy of Tiny Shakespeare")
  text = read_text(path)
  training, validation = split(CharTokenizer.from_text(text).encode(text), 0.1)
  assert (len(training), len(validation)) == (1_003_854, 111_540)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (None, "cannot be read: no such file"),
    (b"", "is empty"),
    (b"\xef\xbb\xbf", "is empty"),
    (b"ab\xff", "is not UTF-8: byte 0xff at offset 2"),
    (b"\xef\xbb\xbfab\xff", "is not UTF-8: byte 0xff at offset 5"),
  ],
)
def test_a_corpus_that_cannot_be_read_is_named(data, message, tmp_path):
  path = tmp_path / "corpus.txt"
  if data is not None:
    path.write_bytes(data)
  with pytest.raises(ValueError, match=message) as error:
    read_text(path)
  assert str(path) in str(error.value)
  with pytest.raises(ValueError, match="cannot be read: is a directory"):
    read_text(tmp_path)


def test_line_ends_become_newlines_and_a_byte_order_mark_is_dropped(tmp_path):
  path = tmp_path / "corpus.txt"
  path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
  assert read_text(path) == "one\ntwo\nthree\n"


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, float("nan")])
def test_a_val_fraction_outside_zero_and_one_is_refused(val_fraction):
  message = r"val_fraction must be in \(0, 1\), got"
  with pytest.raises(ValueError, match=message):
    split(np.arange(10), val_fraction)


@pytest.mark.parametrize("length", [0, 1, 3, 10])
def test_a_part_of_fewer_than_two_tokens_is_refused(length):
  with pytest.raises(ValueError, match=f"too short: of {length} tokens"):
    split(np.arange(length), 0.1)


def test_a_fraction_may_be_a_narrow_number():
  tenth = np.float16(0.1)
  parts = [len(part) for part in split(np.arange(70_000), tenth)]
  assert parts == [len(part) for part in split(np.arange(70_000), float(tenth))]
  text = "a line\n\n" * 20_000
  assert middle_slice(text, tenth) == middle_slice(text, float(tenth))
