import numpy as np
import pytest

from experiments.analysis.features import (
  FEATURES,
  area,
  correlation,
  inside_quotes,
  line_position,
  scores,
  speaker_names,
  word_starts,
)
from experiments.pages.quantise import (
  quantise_gate,
  quantise_norms,
  quantise_signed,
)


def marked(feature, text):
  """Return the text with _ for each character that is not marked."""
  marks = feature(text)
  return "".join(c if m else "_" for c, m in zip(text, marks, strict=True))


def test_a_line_break_begins_to_count_again():
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
  ],
)
def test_quotations_are_told_from_apostrophes(text, expected):
  assert marked(inside_quotes, text) == expected


def test_words_start_after_what_is_no_word():
  text = "Feed'st thy self-love,--'tis\n  o'er 2"
  want = "F_______t___s____________t__" + "___o____2"
  assert marked(word_starts, text) == want
  assert marked(word_starts, "'tis so") == "_t___s_"


def test_names_are_capitalised_lines_that_end_in_a_colon():
  text = (
    "First Citizen:\nBefore we:\n\nDUKE VINCENTIO:\nNo more:\n\n"
    "Thus did I chide:\nThe\n\nDuke of York:\nAh:"
  )
  names = "First Citizen:", "DUKE VINCENTIO:", "Duke of York:"
  expected = np.zeros(len(text), bool)
  for name in names:
    start = text.index(name)
    expected[start : start + len(name)] = True
  assert (speaker_names(text) == expected).all()


def test_a_feature_of_pieces_is_that_of_their_characters():
  pieces = ["Thou", " '", "art", " more", "'", ",", "\n  ", "o'er", "\n"]
  text = "".join(pieces)
  line, quotes, starts, _ = FEATURES
  assert line.of_pieces(text).tolist() == line.of(text).tolist()
  assert line.of_pieces(pieces).tolist() == [4, 6, 9, 14, 15, 16, 2, 6, 0]
  assert quotes.of_pieces(pieces).tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
  assert starts.of_pieces(pieces).tolist() == [1, 0, 1, 1, 0, 0, 0, 1, 0]


def test_the_area_is_the_chance_to_be_larger_where_it_is_true():
  draw = np.random.default_rng(0)
  levels = draw.integers(0, 6, (4, 30)).astype(np.uint8)  # many ties
  feature = draw.random(30) < 0.4
  levels[1] = np.where(feature, 255, 0)
  levels[2] = 7
  found = area(levels, feature)
  for unit, row in enumerate(levels.astype(int)):
    larger = row[feature][:, None] - row[~feature][None]
    expected = (larger > 0).mean() + (larger == 0).mean() / 2
    assert abs(found[unit] - expected) < 1e-12
  assert (found[1], found[2]) == (1.0, 0.5)
  assert (scores(levels, feature) == found).all()


def test_correlation_is_that_of_numpy_and_0_for_a_constant_unit():
  draw = np.random.default_rng(0)
  levels = draw.integers(0, 256, (3, 20)).astype(np.uint8)
  levels[2] = 9
  feature = draw.integers(0, 40, 20)
  found = correlation(levels, feature)
  for unit in (0, 1):
    expected = np.corrcoef(levels[unit], feature)[0, 1]
    assert abs(found[unit] - expected) < 1e-12
  assert found[2] == 0
  assert (scores(levels, feature) == found).all()


def test_a_byte_keeps_a_gate_to_half_a_level():
  values = np.random.default_rng(0).random((3, 50))
  values[0, :2] = 0, 1
  levels = quantise_gate(values)
  assert levels[0, :2].tolist() == [0, 255]
  assert np.abs(levels / 255 - values).max() <= 0.5 / 255 + 1e-12


def test_a_byte_keeps_a_signal_to_half_a_level_of_its_unit():
  values = np.random.default_rng(0).standard_normal((4, 50)) * 10
  values[1] *= 1e-6
  values[2] = 0
  values[0, 3] = 0
  levels, largest = quantise_signed(values)
  decoded = (levels.astype(float) - 128) / 127 * largest[:, None]
  error = np.abs(decoded - values).max(axis=1)
  assert (error <= 0.5 / 127 * largest + 1e-12).all()
  assert (decoded[0, 3], decoded[2].any(), largest[2]) == (0, False, 0)


def test_a_byte_keeps_a_norm_to_six_per_cent_over_twelve_decades():
  values = 10 ** np.linspace(-20, 3, 200).reshape(4, 50)
  values[0, 0] = 0
  levels, low, high = quantise_norms(values)
  assert (levels[0, 0], low, high) == (0, -9, 3)
  decoded = 10 ** (low + (levels - 1.0) / 254 * (high - low))
  inside = values >= 1.001e-9
  assert np.abs(decoded[inside] / values[inside] - 1).max() < 0.057
  assert (levels[(values > 0) & (values < 1e-9)] == 1).all()
  levels, low, high = quantise_norms(np.zeros((2, 3)))
  assert not levels.any() and high > low
  levels, low, high = quantise_norms(np.full((2, 3), 0.1))
  assert (levels == 1).all() and abs(low + 1) < 1e-12 and high > low
