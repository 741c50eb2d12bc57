"""Labels that do not overlap, axis limits, and the picture of a run."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from experiments.trainer.figures import (
  End,
  label_ends,
  save,
  spread,
  tidy,
  zoom_on_tail,
)
from experiments.trainer.plot import draw
from tests.patterns import exact


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


@pytest.mark.parametrize(
  ("points", "important", "low", "high"),
  [
    ([(1, 9.0), (2, 8.0), (50, 2.0), (100, 1.0)], [], 1.0, 2.0),
    ([(1, 9.0), (2, 8.0), (50, 2.0), (100, 1.0)], [8.0], 1.0, 8.0),
    ([(1, 9.0), (50, math.nan), (100, 1.0)], [], 1.0, 1.0),
    ([(1, 9.0)], [], 9.0, 9.0),
    ([(1, 9e20)], [], 9e20, 9e20),
  ],
)
def test_a_loss_is_shown_without_its_beginning(points, important, low, high):
  panel = Figure().subplots()
  zoom_on_tail(panel, points, important)
  bottom, top = panel.get_ylim()
  # For equal losses, the margin is a thousandth of the loss, and at least 0.1.
  margin = 0.05 * (high - low) or (0.1 if high < 10 else 9e17)
  assert (bottom, top) == pytest.approx((low - margin, high + margin))


def test_without_losses_the_limits_stay():
  panel = Figure().subplots()
  before = panel.get_ylim()
  zoom_on_tail(panel, [(1, math.nan)], [])
  assert panel.get_ylim() == before


def test_the_picture_of_a_run_shows_its_best_and_its_test_loss(
  tmp_path, monkeypatch
):
  """Both are of step 10, which is too early to set the limits otherwise."""
  rows = [{"step": 10, "val_loss": 0.5}, {"step": 10, "test_loss": 7.0}]
  rows += [{"step": s, "train_loss": 1.0} for s in (900, 1000)]
  rows += [{"step": 1000, "val_loss": 5.5}]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(lines)
  figures = []

  def savefig(figure, path, **options):
    figures.append(figure)

  monkeypatch.setattr(Figure, "savefig", savefig)
  draw(tmp_path, "character")
  (panel,) = figures[0].axes
  bottom, top = panel.get_ylim()
  assert bottom < 0.5 and top > 7
  title = "Best validation loss 0.5000 nats per character, at step 10"
  assert panel.get_title("left") == title
  assert [(text.get_text(), text.get_color()) for text in panel.texts] == [
    ("test", "tab:red"),
    ("training", "tab:gray"),
    ("validation", "tab:blue"),
  ]


def test_a_picture_that_cannot_be_written_is_named_and_the_old_one_kept(
  tmp_path, no_room
):
  path = tmp_path / "loss.png"
  path.write_text("old")
  with no_room(), pytest.raises(OSError, match="File too large") as error:
    save(Figure(), path)
  assert error.value.filename == str(path)
  assert path.read_text() == "old"
  assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("line", ["null", "[]", "{}", '{"step": 1, "lr": "x"}'])
def test_a_line_that_is_no_row_is_named(line, tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 10, "train_loss": 3.5}\n' + line + "\n")
  with pytest.raises(ValueError, match=f"line 2 of {exact(path)} is not a row"):
    draw(tmp_path, "word")


def test_a_single_point_is_drawn(tmp_path, monkeypatch):
  text = '{"step": 10, "train_loss": 3.5}\n{"step": 20, "train_loss": null}\n'
  cut_off = '{"step": 30, "tra'  # by a full disk
  (tmp_path / "metrics.jsonl").write_text(text + cut_off)
  figures = []
  monkeypatch.setattr(
    Figure, "savefig", lambda figure, path, **options: figures.append(figure)
  )
  draw(tmp_path, "word")
  (panel,) = figures[0].axes
  (line,) = panel.lines
  assert line.get_marker() == "."
  assert panel.get_title("left") == "Training loss, nats per word"
  labels = panel.get_xlabel(), panel.get_ylabel()
  assert labels == ("training steps", "nats per word")


def test_labels_are_beside_the_panel_and_do_not_overlap():
  figure = Figure(figsize=(4, 2), dpi=100)
  panel = figure.subplots()
  panel.set_ylim(0, 1)
  tidy(panel, "title", "x", "y", "a note")
  label_ends(panel, [End(0.5, "a", "red"), End(0.51, "b", "blue")])
  figure.draw_without_rendering()
  extents = {t.get_text(): t.get_window_extent() for t in panel.texts}
  assert [*extents] == ["a note", "a", "b"]
  note, low, high = extents.values()
  assert note.y0 > panel.get_window_extent().y1
  assert low.y1 <= high.y0 + 1  # pixels
  assert low.x0 > panel.get_window_extent().x1
  # Their distance is 1.15 font sizes of 9 points, at 100 pixels per inch.
  apart = (high.y0 + high.y1 - low.y0 - low.y1) / 2
  assert abs(apart - 1.15 * 9 * 100 / 72) < 2
  middle = panel.transData.transform((0, 0.505))[1]
  assert abs((low.y0 + high.y1) / 2 - middle) < 1
