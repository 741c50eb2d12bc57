"""Features of a text, and the scores of units for them."""

import numpy as np
import pytest

from experiments.analysis.features import (
  FEATURES,
  correlation,
  inside_quotes,
  line_position,
  roc_area,
  scores,
  speaker_names,
  word_starts,
)


def masked(feature, text):
  """Return the text with _ where the feature is false."""
  values = feature(text)
  return "".join(c if v else "_" for c, v in zip(text, values, strict=True))


def test_the_line_position_counts_from_1_and_is_0_at_a_line_break():
  assert line_position("ab\n\ncd").tolist() == [1, 2, 0, 0, 1, 2]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("say 'yes' and", "____'yes_____"),
    ('say "so be it:"', '____"so be it:_'),
    ("I say ''tis so, 'tis true,'\n", "______''tis so, 'tis true,__"),
    ("'gainst o'er th' sea", "_" * 20),
    ("“Now,” he ‘said’", "“Now,_____‘said_"),
    ("'One,\ntwo.\n\nthree", "'One,\ntwo._______"),
    ("'One\n\n'two' three", "'One__'two_______"),
    ("\"O 'yes' so", "\"O 'yes____"),  # one inside another
    ("a ' b", "_____"),
    ("'Go,'he said", "'Go,________"),
    # The second mark neither opens nor closes.
    ("say 'yes ' no' so", "____'yes ' no____"),
    # An apostrophe after an accent or a vowel sign of its own.
    ("blesse\u0301'd দু'টি", "_" * 15),
  ],
)
def test_quotation_marks_are_distinguished_from_apostrophes(text, expected):
  assert masked(inside_quotes, text) == expected


def test_words_start_after_blanks_and_marks():
  text = "Feed'st thy self-love,--'tis\n  o'er 2"
  want = "F_______t___s____________t__" + "___o____2"
  assert masked(word_starts, text) == want
  assert masked(word_starts, "'tis so") == "_t___s_"
  # Combining vowel signs and accents belong to a word; ❤️'s mark does not.
  text = "हिन्दी में cafe\u0301s ❤\ufe0f1"
  assert masked(word_starts, text) == "ह______म___c________1"


def test_names_are_capitalized_lines_that_end_in_a_colon():
  """A name starts the text or follows a blank line; "Amen:" does neither.

  "Ah:", at the end of the text, is no name. Capitals are those of any script,
  and an accent may be a character of its own.
  """
  text = (
    "First Citizen:\nBefore we:\n\nDUKE VINCENTIO:\nAmen:\n\n"
    "Thus did I chide:\nThe\n\nDuke of York and the Lords:\nO\n\n"
    "E\u0301lise et Valère:\n\nE\u0301LISE:\nÔ\n\nПётр:\nО\n\nof York:\n\nAh:"
  )
  names = (
    *("First Citizen:", "DUKE VINCENTIO:", "Duke of York and the Lords:"),
    *("E\u0301LISE:", "Пётр:"),
  )
  expected = np.zeros(len(text), bool)
  for name in names:
    start = text.index(name)
    expected[start : start + len(name)] = True
  assert (speaker_names(text) == expected).all()


def test_the_feature_of_a_piece_is_that_of_its_characters():
  pieces = ["Thou", " '", "art", " more", "'", ",", "\n  ", "o'er", "\n"]
  text = "".join(pieces)
  line, quotes, starts, _ = FEATURES
  assert line.of_pieces(text).tolist() == line.compute(text).tolist()
  assert line.of_pieces(pieces).tolist() == [4, 6, 9, 14, 15, 16, 2, 6, 0]
  assert quotes.of_pieces(pieces).tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
  assert starts.of_pieces(pieces).tolist() == [1, 0, 1, 1, 0, 0, 0, 1, 0]


def test_the_area_is_the_probability_of_being_larger_where_true():
  draw = np.random.default_rng(0)
  levels = draw.integers(0, 6, (4, 30)).astype(np.uint8)  # many ties
  feature = draw.random(30) < 0.4
  levels[1] = np.where(feature, 255, 0)
  levels[2] = 7
  areas = roc_area(levels, feature)
  for unit, row in enumerate(levels.astype(int)):
    larger = row[feature][:, None] - row[~feature][None]
    expected = (larger > 0).mean() + (larger == 0).mean() / 2
    assert abs(areas[unit] - expected) < 1e-12
  assert (areas[1], areas[2]) == (1.0, 0.5)
  assert (scores(levels, feature) == areas).all()


def test_the_correlation_is_that_of_numpy_and_0_for_a_constant_unit():
  draw = np.random.default_rng(0)
  levels = draw.integers(0, 256, (3, 20)).astype(np.uint8)
  levels[2] = 9
  feature = draw.integers(0, 40, 20)
  correlations = correlation(levels, feature)
  for unit in (0, 1):
    expected = np.corrcoef(levels[unit], feature)[0, 1]
    assert abs(correlations[unit] - expected) < 1e-12
  assert correlations[2] == 0
  assert (scores(levels, feature) == correlations).all()
