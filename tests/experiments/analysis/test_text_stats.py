"""Statistics of generated text."""

import pytest

from experiments.analysis.text_stats import (
  ending,
  lines,
  shuffled,
  text_stats,
  words,
)

SONNET = """From fairest creatures we desire increase,
That thereby beauty's rose might never die,
But as the riper should by time decease,
His tender heir might lie;
"""


def test_words_are_letters_with_apostrophes_and_hyphens_inside():
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
  # Marks belong to the letter before them; those of an emoji to no word.
  assert words("हिन्दी में, CAFE\u0301S ❤\ufe0f 1\ufe0f\u20e3") == [
    "हिन्दी",
    "में",
    "cafe\u0301s",
  ]


def test_lines_are_complete_and_not_empty():
  assert lines("one\n\n  two \n \nthr") == ["one", "two"]


def test_shares_and_lengths_are_as_counted_by_hand():
  texts = ["the cat\nsat - zat\nthe", "zat dog "]  # "the" may be half a word
  stats = text_stats(texts, {"the", "cat", "sat"}, {"the", "dog"})
  assert stats.words_in_train == 3 / 6
  assert stats.words_in_val == 2 / 6
  assert stats.line_length == 8  # of 7 and 9
  assert text_stats(["\n"], set(), set()) == (None, None, None, None)
  with pytest.raises(TypeError, match=r"^texts must be a list .* got a str$"):
    text_stats("the cat\n", set(), set())
  cut = text_stats(["the dog’", "the self-"], {"the"}, {"dog", "self"})
  assert (cut.words_in_train, cut.words_in_val) == (1, 0)
  assert text_stats(["में हिन्दी"], {"में"}, set()).words_in_train == 1


@pytest.mark.parametrize(
  ("word", "expected"),
  [
    ("increase", "ease"),
    ("die", "ie"),
    ("due", "ue"),
    ("brow", "ow"),
    ("hours", "ours"),
    ("by", "y"),
    ("love", "ove"),
    ("the", "e"),
    ("allé", "é"),
    ("forêt", "êt"),
    ("cœur", "ur"),
    ("hmm", "hmm"),
    ("", ""),
  ],
)
def test_an_ending_begins_at_the_last_vowels_other_than_a_silent_e(
  word, expected
):
  assert ending(word) == expected


def test_lines_rhyme_with_another_word_at_most_two_lines_away():
  assert text_stats([SONNET], set(), set()).rhymes == 1.0  # a b a b
  same = "the day\nthe day\n"
  assert text_stats([same], set(), set()).rhymes == 0.0
  far = "a day\nb dog\nc hut\nto say\n"
  assert text_stats([far], set(), set()).rhymes == 0.0
  wordless = "the day\n--\nto say\n12\n"
  assert text_stats([wordless], set(), set()).rhymes == 2 / 4
  apart = ["a day\n", "to say\n"]  # lines of different texts
  assert text_stats(apart, set(), set()).rhymes == 0.0


def test_shuffled_lines_are_the_same_lines_in_another_order():
  text = "".join(f"line {i}\n" for i in range(20))
  assert shuffled(text) == shuffled(text) != text
  assert sorted(lines(shuffled(text))) == sorted(lines(text))
