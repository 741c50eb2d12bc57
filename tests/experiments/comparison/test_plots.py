"""The figures of a comparison: lines of a few cells, rows of many."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.comparison import plots
from experiments.comparison.plots import (
  Panel,
  Series,
  edge,
  make_panels,
  name,
  sorted_cells,
)
from tests.experiments.comparing import example


@pytest.fixture
def panel():
  return Figure().subplots()


def legend(record, path, monkeypatch):
  """Return the labels of the legend of a record's figure."""
  found = []
  monkeypatch.setattr(Figure, "legend", lambda self, **kw: found.append(kw))
  plots.draw(record, path)
  return [handle.get_label() for handle in found[0]["handles"]]


def points(panel):
  """Return the points of each line of a panel."""
  return [line.get_xydata().tolist() for line in panel.lines]


def test_a_loss_is_the_mean_of_the_seeds_after_so_many_steps(panel):
  record = example()
  for run in record["runs"]:  # a third seed: the mean is not the median
    for row, loss in zip(run["evaluations"], (4, 3, 3.5), strict=True):
      row["val_loss"].append(loss)
  plots._val_loss(record, panel)
  for line in points(panel):
    np.testing.assert_allclose(line, [[0, 4], [100, 2.4], [150, 2]])
  assert len(points(panel)) == 3


def test_the_shade_goes_from_the_least_to_the_largest_of_the_seeds(panel):
  plots._band(panel, [1, 2], [[4.0, 1.0, 1.5], [2.0, 2.5, 3.5]], "rnn")
  (shade,) = panel.collections
  corners = {tuple(corner) for corner in shade.get_paths()[0].vertices}
  assert corners == {(1.0, 1.0), (1.0, 4.0), (2.0, 2.0), (2.0, 3.5)}


def test_losses_by_time_are_those_of_equal_time_and_of_the_lstm():
  record = example()
  record["cells"]["gru"]["seconds_per_step"] = 0.25
  timed, equal = Figure().subplots(1, 2)
  plots._val_loss_by_time(record, timed)
  ends = [line[-1] for line in points(timed)]
  assert ends == [[85, 1.25], [35, 1.25], [75, 1.25]]  # 170, 140, 150 steps
  record["runs"] = record["runs"][:3]  # without equal time
  plots._val_loss_by_time(record, equal)
  ends = [line[-1] for line in points(equal)]
  assert ends == [[75, 1.25], [37.5, 1.25], [75, 1.25]]


def test_words_are_in_percent_and_a_context_has_the_mean_of_the_seeds():
  words, context = Figure().subplots(1, 2)
  plots._words(example(), words)
  *lines, validation = words.lines
  found = [(n.get_linestyle(), n.get_xydata().tolist()) for n in lines]
  assert found == [
    *[("-", [[0, 10], [150, 60]]), (":", [[0, 25], [150, 25]])] * 3
  ]
  assert [*validation.get_ydata()] == [90, 90]
  plots._context(example(), context)
  assert points(context) == [[[1, 3], [2, 2], [4, 1.25]]] * 3


def test_the_gradients_of_h_and_c_are_drawn_and_no_others(panel):
  norms = {"h": [2.0, 1.0], "c": [4.0, 3.0], "n": [6.0, 5.0], "m": [8.0, 7.0]}
  row = {"cell": "slstm", "stage": "trained", "norms": norms}
  plots._gradient_flow({"gradient_flow": [row]}, panel)
  found = [(line.get_linestyle(), [*line.get_ydata()]) for line in panel.lines]
  assert found == [("-", [1.0, 0.5]), ("--", [2.0, 1.5])]


def test_a_gradient_of_0_or_beyond_float32_is_a_gap(panel):
  for h in ([2.0, 0.0, 1.0, None], [0.0, 1.0], [None, 1.0]):
    row = {"cell": "rnn", "stage": "trained", "norms": {"h": h}}
    plots._gradient_flow({"gradient_flow": [row]}, panel)
  found = [line.get_ydata() for line in panel.lines]
  expected = [1.0, np.nan, 0.5, np.nan], [np.nan] * 2, [np.nan] * 2
  for ratios, wanted in zip(found, expected, strict=True):
    assert np.array_equal(ratios, wanted, equal_nan=True)


def test_the_line_of_recall_goes_from_the_shortest_to_the_longest_delay(panel):
  record = example()
  record["recall"] = record["recall"][1::-1]  # of the RNN
  plots._recall(record, panel)
  assert points(panel)[0] == [[1, 1.0], [5, 0.75]]


def test_lines_have_the_styles_that_the_notes_name():
  recall, gradients = Figure().subplots(1, 2)
  plots._recall(example(), recall)
  *lines, chance = recall.lines
  styles = [line.get_linestyle() for line in lines]
  assert styles == ["-"] * 3 + ["--"] * 2 and chance.get_ydata()[0] == 1 / 8
  note = "solid: usual; dashed: chrono"
  assert any(note in text.get_text() for text in recall.findobj(Text))
  plots._gradient_flow(example(), gradients)
  widths = [line.get_linewidth() for line in gradients.lines]
  # Untrained, then trained: h of three cells, and c of the LSTM.
  assert widths == [*[0.7, 1.8] * 2, *[0.7] * 2, *[1.8] * 2]
  note = "thin: untrained"
  assert any(note in text.get_text() for text in gradients.findobj(Text))


@pytest.mark.exhaustive
def test_the_legend_names_the_trained_cells_and_what_diverged(
  tmp_path, monkeypatch
):
  record, path = example(), tmp_path / "figure.png"
  record["runs"] = record["runs"][:2]  # it was interrupted
  assert legend(record, path, monkeypatch) == ["RNN", "GRU"]
  record["runs"][1] |= {"evaluations": None, "samples": None}
  labels = legend(record, path, monkeypatch)
  assert labels == ["RNN", "GRU, diverged: equal steps"]


def test_delays_of_less_than_a_decade_are_plain_numbers(panel):
  rows = [
    {"cell": "gru", "forget_bias": "usual", "delay": delay, "accuracy": [1.0]}
    for delay in (1, 3)
  ]
  plots._recall({"recall": rows}, panel)
  formatter = panel.xaxis.get_minor_formatter()
  assert formatter.format_ticks([2, 3]) == ["2", "3"]


COMPARED = "lstm", "gru", "rnn", "a", "b", "c", "far", "d"
LOSSES = 1.60, 1.58, 1.66, 1.61, 1.62, 1.63, 2.30, 1.59


@pytest.fixture
def many():
  """Return what a comparison of eight cells has measured.

  A run has losses of three seeds; two are enough for the words and the context.
  """
  losses = dict(zip(COMPARED, LOSSES, strict=True))

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

  others = [cell for cell in COMPARED if cell not in ("lstm", "far")]
  return {
    "cells": {
      cell: {"hidden_size": 10 + k, "seconds_per_step": 0.1 + 0.05 * k}
      for k, cell in enumerate(COMPARED)
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
      for cell in COMPARED
      for stage, norm in (("trained", 1.0), ("untrained", 0.1))
    ],
  }


def test_a_row_has_the_values_of_its_cell(many):
  assert sorted_cells(many) == [
    *("gru", "d", "lstm", "a", "b", "c", "rnn", "far")
  ]
  losses, context, words, gradients, times = make_panels(many)
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


def test_a_far_loss_does_not_lengthen_the_axis(many):
  losses, _, words, *_ = make_panels(many)
  end = edge(losses, sorted_cells(many))
  assert 1.65 < end < 1.7  # past the best six (c, equal time: 1.67), not 2.3
  assert edge(words, sorted_cells(many)) is None
  many["runs"] = [run for run in many["runs"] if run["cell"] != "far"]
  assert edge(make_panels(many)[0], sorted_cells(many)) is None


def test_the_axis_is_at_most_twice_as_long_as_the_best_cells_need():
  # The best three take from 1 to 2; 2.05 leaves a margin of 5 % of that.
  for far, end in ((3.0, None), (3.01, 2.05)):
    values = {"a": [1.0], "b": [1.5], "c": [2.0], "d": [far]}
    panel = Panel("", "", [Series("", values)], cut=True)
    assert edge(panel, [*"abcd"]) == end
  assert edge(panel, ["e"]) is None  # no values, as if it had diverged


def test_a_missing_gradient_or_loss_is_left_out(many):
  """Gradients of 0, beyond float32 (None) or cut short, and the LSTM's loss."""
  lstm, gru, rnn, *_ = (
    row["norms"]["h"]
    for row in many["gradient_flow"]
    if row["stage"] == "trained"
  )
  lstm[0], gru[0] = None, 0.0
  del rnn[50:]
  many["runs"][0] |= {"evaluations": None, "samples": None}
  losses, *_, gradients, _ = make_panels(many)
  assert gradients.series[0].values.keys() == {*COMPARED[3:]}
  for series in losses.series:
    assert {"lstm", "gru"} & series.values.keys() == {"gru"}


def test_a_row_has_a_mark_at_the_mean_and_a_far_loss_as_a_number(
  many, monkeypatch
):
  figures = []
  monkeypatch.setattr(
    plots, "save", lambda figure, *_, **__: figures.append(figure)
  )
  plots.draw_rows(many, None)
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
  end = edge(make_panels(many)[0], sorted_cells(many))
  assert figure.axes[0].get_xlim()[1] == end


def test_a_cell_that_diverged_has_the_last_row_which_says_so(many, tmp_path):
  for run in many["runs"]:
    if run["cell"] == "gru" or run["budget"] == "equal time":
      run |= {"evaluations": None, "samples": None}
  assert sorted_cells(many) == [
    *("d", "lstm", "a", "b", "c", "rnn", "far", "gru")
  ]
  losses, _, words, *_ = make_panels(many)
  assert len(losses.series) == 1 and "gru" not in losses.series[0].values
  assert "gru" not in words.series[0].values
  assert name(many, "d") == "d, H 17, diverged: equal time"
  assert name(many, "gru") == "gru, H 11, diverged: equal steps, equal time"
  plots.draw_rows(many, tmp_path / "dots.png")
  many["runs"] = [run for run in many["runs"] if run["cell"] == "gru"]
  plots.draw_rows(many, tmp_path / "dots.png")


def test_panels_and_marks_without_values_are_left_out(many, tmp_path):
  for row in many["gradient_flow"]:
    row["norms"]["h"][50] = 0.0  # underflow
  many["runs"] = [r for r in many["runs"] if r["budget"] == "equal steps"]
  titles = [panel.title for panel in make_panels(many)]
  assert "Gradient 50 back" not in titles and len(titles) == 4
  assert len(make_panels(many)[0].series) == 1
  for row in many["context"]:
    row["lengths"] = [16, 100]
  (context,) = make_panels(many)[1].series
  assert context.label == "9 to 16 characters"
  plots.draw_rows(many, tmp_path / "dots.png")
  assert (tmp_path / "dots.png").stat().st_size > 10_000
