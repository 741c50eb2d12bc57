"""Labels at the ends of lines do not overlap."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from experiments.trainer.figures import End, label_ends, spread, tidy


def test_heights_that_are_apart_stay():
  assert spread([1.0, 5.0, 9.0], 2) == [1.0, 5.0, 9.0]


def test_heights_that_are_close_move_apart_around_their_mean():
  assert spread([4.0, 4.0], 2) == [3.0, 5.0]
  assert spread([0.0, 3.9, 4.1], 2) == [0.0, 3.0, 5.0]
  expected = pytest.approx([4 / 3, 10 / 3, 16 / 3])
  assert spread([2.0, 3.9, 4.1], 2) == expected


@given(st.lists(st.integers(-30, 30), max_size=8).map(sorted))
def test_heights_keep_their_order_mean_and_gap(heights):
  found = spread([float(y) for y in heights], 2)
  assert len(found) == len(heights)
  for low, high in pairwise(found):
    assert high - low >= 2 - 1e-9
  assert abs(sum(found) - sum(heights)) < 1e-9


def test_labels_are_beside_the_panel_and_do_not_overlap():
  figure = Figure(figsize=(4, 2), dpi=100)
  panel = figure.subplots()
  panel.set_ylim(0, 1)
  tidy(panel, "title", "x", "y")
  label_ends(panel, [End(0.5, "a", "red"), End(0.51, "b", "blue")])
  figure.draw_without_rendering()
  low, high = (text.get_window_extent() for text in panel.texts)
  assert low.y1 <= high.y0 + 1  # pixels
  assert low.x0 > panel.get_window_extent().x1
  middle = panel.transData.transform((0, 0.505))[1]
  assert abs((low.y0 + high.y1) / 2 - middle) < 1
