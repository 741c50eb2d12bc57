"""Labels that do not overlap, axis limits, and the picture of a run."""

import math

import pytest
from matplotlib.figure import Figure

from experiments.trainer.figures import (
  End,
  draw_losses,
  label_ends,
  save,
  tidy,
  zoom_on_tail,
)


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


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are saved, which are not drawn."""
  figures = []
  monkeypatch.setattr(
    Figure, "savefig", lambda figure, path, **options: figures.append(figure)
  )
  return figures


def test_the_picture_of_a_run_shows_its_best_and_its_test_loss(tmp_path, drawn):
  """Both are of step 10, which is too early to set the limits otherwise."""
  rows = [{"step": 10, "val_loss": 0.5}, {"step": 10, "test_loss": 7.0}]
  rows += [{"step": s, "train_loss": 1.0} for s in (900, 1000)]
  rows += [{"step": 1000, "val_loss": 5.5}]
  draw_losses(rows, "character", tmp_path / "loss.png")
  (panel,) = drawn[0].axes
  bottom, top = panel.get_ylim()
  assert bottom < 0.5 and top > 7
  title = "Best validation loss 0.5000 nats per character, at step 10"
  assert panel.get_title("left") == title
  assert [(text.get_text(), text.get_color()) for text in panel.texts] == [
    ("training", "tab:gray"),
    ("validation", "tab:blue"),
    ("test", "tab:red"),
  ]


def test_a_run_without_an_evaluation_shows_its_training_loss(tmp_path, drawn):
  rows = [{"step": 10, "train_loss": 3.5}, {"step": 20, "train_loss": None}]
  draw_losses(rows, "word", tmp_path / "loss.png")
  (panel,) = drawn[0].axes
  assert panel.get_title("left") == "Training loss, nats per word"
  labels = panel.get_xlabel(), panel.get_ylabel()
  assert labels == ("training steps", "nats per word")


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
  beside = panel.transData.transform((0, 0.5))[1]  # the lower is not moved
  assert abs((low.y0 + low.y1) / 2 - beside) < 2
