"""The dot plot of a comparison of many cells."""

import numpy as np
import pytest

from experiments.comparison import dot_plot
from experiments.comparison.dot_plot import (
  Panel,
  Series,
  draw,
  edge,
  make_panels,
  name,
  sorted_cells,
)

CELLS = "lstm", "gru", "rnn", "a", "b", "c", "far", "d"
LOSSES = 1.60, 1.58, 1.66, 1.61, 1.62, 1.63, 2.30, 1.59


@pytest.fixture
def record():
  """Return what a comparison of eight cells has measured.

  A run has losses of three seeds; two are enough for the words and the context.
  """
  losses = dict(zip(CELLS, LOSSES, strict=True))

  def run(cell, budget, loss):
    share = 0.5 if budget == "equal steps" else 0.6
    samples = [
      {"words_in_train": [0.1, 0.1]},
      {"words_in_train": [share, None]},
    ]
    spread = 0.03 if cell == "d" else 0.01
    last = {"val_loss": [loss - spread, loss - spread, loss + 2 * spread]}
    return {"cell": cell, "budget": budget} | {
      "evaluations": [{"val_loss": [4.0] * 3}, last],
      "samples": samples,
    }

  others = [cell for cell in CELLS if cell not in ("lstm", "far")]
  return {
    "cells": {
      cell: {"hidden_size": 10 + k, "seconds_per_step": 0.1 + 0.05 * k}
      for k, cell in enumerate(CELLS)
    },
    "runs": [
      *(run(cell, "equal steps", loss) for cell, loss in losses.items()),
      *(run(cell, "equal time", losses[cell] + 0.02) for cell in others),
    ],
    "context": [
      {"cell": cell, "budget": budget, "lengths": [16, 128]}
      | {"val_loss": [[loss + more, loss], [loss + more, loss]]}
      for budget, more in (("equal steps", 0.1), ("equal time", 0.2))
      for cell, loss in losses.items()
    ],
    "gradient_flow": [
      {"cell": cell, "stage": stage, "norms": {"h": [2.0] + [norm] * 60}}
      for cell in CELLS
      for stage, norm in (("trained", 1.0), ("untrained", 0.1))
    ],
  }


def test_a_row_has_the_values_of_its_cell(record):
  assert sorted_cells(record) == [
    *("gru", "d", "lstm", "a", "b", "c", "rnn", "far")
  ]
  losses, context, words, gradients, times = make_panels(record)
  steps, timed = (series.values for series in losses.series)
  np.testing.assert_allclose(steps["gru"], [1.57, 1.57, 1.6])
  np.testing.assert_allclose(timed["gru"], [1.59, 1.59, 1.62])
  # The LSTM has one run for both budgets; "far" has none after equal time.
  assert timed["lstm"] == steps["lstm"] and "far" not in timed
  assert [series.label for series in context.series] == [
    *("65 to 128 characters", "9 to 16 characters")
  ]
  assert context.series[1].values["rnn"] == [1.76, 1.76]
  assert words.series[0].values["rnn"] == [50]
  assert gradients.series[0].values["rnn"] == [0.5]
  np.testing.assert_allclose(times.series[0].values["rnn"], [2])
  assert times.unit == "of lstm's"


def test_a_far_loss_does_not_lengthen_the_axis(record):
  losses, _, words, *_ = make_panels(record)
  end = edge(losses, sorted_cells(record))
  assert 1.65 < end < 1.7  # past the best six (c, equal time: 1.67), not 2.3
  assert edge(words, sorted_cells(record)) is None
  record["runs"] = [run for run in record["runs"] if run["cell"] != "far"]
  assert edge(make_panels(record)[0], sorted_cells(record)) is None


def test_the_axis_is_at_most_twice_as_long_as_the_best_cells_need():
  # The best three take from 1 to 2; 2.05 leaves a margin of 5 % of that.
  for far, end in ((3.0, None), (3.01, 2.05)):
    values = {"a": [1.0], "b": [1.5], "c": [2.0], "d": [far]}
    panel = Panel("", "", [Series("", values)], cut=True)
    assert edge(panel, [*"abcd"]) == end
  assert edge(panel, ["e"]) is None  # no values, as if it had diverged


def test_a_missing_gradient_or_loss_is_left_out(record):
  """Gradients of 0, beyond float32 (None) or cut short, and the LSTM's loss."""
  lstm, gru, rnn, *_ = (
    row["norms"]["h"]
    for row in record["gradient_flow"]
    if row["stage"] == "trained"
  )
  lstm[0], gru[0] = None, 0.0
  del rnn[50:]
  record["runs"][0] |= {"evaluations": None, "samples": None}
  losses, *_, gradients, _ = make_panels(record)
  assert gradients.series[0].values.keys() == {*CELLS[3:]}
  for series in losses.series:
    assert {"lstm", "gru"} & series.values.keys() == {"gru"}


def test_a_row_has_a_mark_at_the_mean_and_a_far_loss_as_a_number(
  record, monkeypatch
):
  figures = []
  monkeypatch.setattr(
    dot_plot, "save", lambda figure, *_, **__: figures.append(figure)
  )
  draw(record, None)
  (figure,) = figures
  numbers = [
    [(t.get_text(), t.xy[1]) for t in panel.texts] for panel in figure.axes
  ]
  assert numbers == [
    [("2.30 →", 7), ("1.68 →", 6)],  # after equal steps, and equal time
    [("2.30, 2.40 →", 7), ("1.76 →", 6)],  # with a long and a short context
    *[[], [], []],
  ]
  steps, timed = figure.axes[0].lines
  means = [1.58, 1.59, 1.6, 1.61, 1.62, 1.63, 1.66]
  np.testing.assert_allclose(steps.get_xdata(), means)
  assert [*steps.get_ydata()] == [*range(7)]
  np.testing.assert_allclose(timed.get_xdata()[:3], [1.6, 1.61, 1.6])
  assert [*timed.get_ydata()] == [*range(6)]
  # A line goes from the least to the largest seed; the best row is on top.
  first, second, *_ = (
    line.get_segments()[0] for line in figure.axes[0].collections
  )
  np.testing.assert_allclose(first, [[1.57, 0], [1.6, 0]])
  np.testing.assert_allclose(second, [[1.56, 1], [1.65, 1]])
  assert [panel.get_ylim() for panel in figure.axes] == [(7.6, -0.6)] * 5
  end = edge(make_panels(record)[0], sorted_cells(record))
  assert figure.axes[0].get_xlim()[1] == end


def test_a_cell_that_diverged_has_the_last_row_which_says_so(record, tmp_path):
  for run in record["runs"]:
    if run["cell"] == "gru" or run["budget"] == "equal time":
      run |= {"evaluations": None, "samples": None}
  assert sorted_cells(record) == [
    *("d", "lstm", "a", "b", "c", "rnn", "far", "gru")
  ]
  losses, _, words, *_ = make_panels(record)
  assert len(losses.series) == 1 and "gru" not in losses.series[0].values
  assert "gru" not in words.series[0].values
  assert name(record, "d") == "d, H 17, diverged: equal time"
  assert name(record, "gru") == "gru, H 11, diverged: equal steps, equal time"
  draw(record, tmp_path / "dots.png")
  record["runs"] = [run for run in record["runs"] if run["cell"] == "gru"]
  draw(record, tmp_path / "dots.png")


def test_panels_and_marks_without_values_are_left_out(record, tmp_path):
  for row in record["gradient_flow"]:
    row["norms"]["h"][50] = 0.0  # underflow
  record["runs"] = [r for r in record["runs"] if r["budget"] == "equal steps"]
  titles = [panel.title for panel in make_panels(record)]
  assert "Gradient 50 back" not in titles and len(titles) == 4
  assert len(make_panels(record)[0].series) == 1
  for row in record["context"]:
    row["lengths"] = [16, 100]
  (context,) = make_panels(record)[1].series
  assert context.label == "9 to 16 characters"
  draw(record, tmp_path / "dots.png")
  assert (tmp_path / "dots.png").stat().st_size > 10_000
