import pytest

from experiments.analysis.text_stats import (
  ending,
  lines,
  shuffled,
  words,
  writing,
)

SONNET = """From fairest creatures we desire increase,
That thereby beauty's rose might never die,
But as the riper should by time decease,
His tender heir might lie;
"""


def test_words_are_letters_with_what_joins_them():
  text = "Feed'st thy self-love, O! 'This' --it's 3 o’clock;\nÉté"
  assert words(text) == [
    "feed'st",
    "thy",
    "self-love",
    "o",
    "this",
    "it's",
    "o’clock",
    "été",
  ]


def test_lines_are_those_that_end_and_are_not_empty():
  assert lines("one\n\n  two \nthr") == ["one", "two"]


def test_shares_and_lengths_are_those_counted_by_hand():
  texts = ["the cat\nsat zat\nthe", "zat dog "]  # "the" may be half a word
  found = writing(texts, {"the", "cat", "sat"}, {"the", "dog"})
  assert found.in_training == 3 / 6
  assert found.in_held_out == 2 / 6
  assert found.line_length == 7
  assert writing(["\n"], set(), set()) == (None, None, None, None)


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("we desire increase,", "ease"),
    ("might never die", "ie"),
    ("the world's due", "ue"),
    ("thy brow;", "ow"),
    ("thy hours", "ours"),
    ("hmm", "hmm"),
    ("-- 17 --", ""),
  ],
)
def test_a_line_ends_in_its_last_vowels_and_what_follows(line, expected):
  assert ending(line) == expected


def test_rhymes_are_two_lines_apart_at_most_and_not_of_one_word():
  assert writing([SONNET], set(), set()).rhymes == 1.0  # a b a b
  same = "the day\nthe day\n"
  assert writing([same], set(), set()).rhymes == 0.0
  far = "a day\nb\nc dog\nd hut\nto say\n"
  assert writing([far], set(), set()).rhymes == 0.0


def test_shuffled_lines_are_the_same_lines_in_another_order():
  text = "".join(f"line {i}\n" for i in range(20))
  assert shuffled(text) != text
  assert sorted(lines(shuffled(text))) == sorted(lines(text))
