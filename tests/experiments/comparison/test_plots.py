"""The figures of a comparison: lines of a few cells, rows of many."""

import numpy as np
import pytest
from matplotlib.text import Text

from experiments.comparison import plots
from tests.experiments.comparing import example

TITLES = "loss", "timed", "words", "context", "gradients", "recall"


def panels(record):
  """Return the panels of the lines of a record, by name."""
  return dict(zip(TITLES, plots.draw_lines(record).axes, strict=True))


def points(panel):
  """Return the points of each line of a panel."""
  return [line.get_xydata().tolist() for line in panel.lines]


def test_a_line_is_the_mean_of_the_seeds_and_the_shade_their_range():
  record = example()
  for run in record["runs"]:  # a third seed: the mean is not the median
    for row, loss in zip(run["evaluations"], (4, 3, 3.5), strict=True):
      row["val_loss"].append(loss)
  panel = panels(record)["loss"]
  for line in points(panel):
    np.testing.assert_allclose(line, [[0, 4], [100, 2.4], [150, 2]])
  assert len(points(panel)) == 3
  corners = {tuple(x) for x in panel.collections[0].get_paths()[0].vertices}
  ends = {(100, 2), (100, 3), (150, 1), (150, 3.5)}
  assert corners == {(0.0, 4.0), *ends}


def test_losses_by_time_are_those_of_equal_time_and_of_the_lstm():
  record = example()
  record["cells"]["gru"]["seconds_per_step"] = 0.25
  ends = [line[-1] for line in points(panels(record)["timed"])]
  assert ends == [[85, 1.25], [35, 1.25], [75, 1.25]]  # 170, 140, 150 steps
  record["runs"] = record["runs"][:3]  # without equal time
  ends = [line[-1] for line in points(panels(record)["timed"])]
  assert ends == [[75, 1.25], [37.5, 1.25], [75, 1.25]]


def test_words_are_in_percent_and_a_context_has_the_mean_of_the_seeds():
  found = panels(example())
  *lines, validation = found["words"].lines
  assert [(n.get_linestyle(), n.get_xydata().tolist()) for n in lines] == [
    *[("-", [[0, 10], [150, 60]]), (":", [[0, 25], [150, 25]])] * 3
  ]
  assert [*validation.get_ydata()] == [90, 90]
  assert points(found["context"]) == [[[1, 3], [2, 2], [4, 1.25]]] * 3


@pytest.mark.parametrize(
  ("norms", "expected"),
  [
    # The parts h and c are drawn, and no others.
    ({"h": [2, 1], "c": [4, 3], "n": [6, 5]}, [[1, 0.5], [2, 1.5]]),
    # A gradient of 0 or beyond float32 is a gap.
    ({"h": [2, 0, 1, None]}, [[1, np.nan, 0.5, np.nan]]),
    ({"h": [0, 1]}, [[np.nan] * 2]),
    ({"h": [None, 1]}, [[np.nan] * 2]),
  ],
)
def test_gradients_are_relative_to_the_first_of_h(norms, expected):
  row = {"cell": "slstm", "stage": "trained", "norms": norms}
  panel = panels(example() | {"gradient_flow": [row]})["gradients"]
  np.testing.assert_array_equal([n.get_ydata() for n in panel.lines], expected)
  styles = [line.get_linestyle() for line in panel.lines]
  assert styles == ["-", "--"][: len(expected)]


def test_lines_have_the_styles_that_the_notes_name():
  record = example()
  record["recall"].reverse()  # drawn from the shortest delay to the longest
  found = panels(record)
  *lines, chance = found["recall"].lines
  styles = [line.get_linestyle() for line in lines]
  assert sorted(styles) == ["-"] * 3 + ["--"] * 2
  assert chance.get_ydata()[0] == 1 / 8
  usual = [line for line in points(found["recall"]) if line[-1] == [5, 0.75]]
  assert usual == [[[1, 1.0], [5, 0.75]]] * 3
  widths = [line.get_linewidth() for line in found["gradients"].lines]
  # Untrained, then trained: h of three cells, and c of the LSTM.
  assert widths == [*[0.7, 1.8] * 2, *[0.7] * 2, *[1.8] * 2]
  notes = {
    "recall": "solid: usual; dashed: chrono",
    "gradients": "thin: untrained",
  }
  for name, note in notes.items():
    assert any(note in text.get_text() for text in found[name].findobj(Text))
  # Delays of less than a decade are plain numbers.
  formatter = found["recall"].xaxis.get_minor_formatter()
  assert formatter.format_ticks([2, 3]) == ["2", "3"]


def test_the_legend_names_the_trained_cells_and_what_diverged():
  record = example()
  record["runs"] = record["runs"][:2]  # it was interrupted
  record["runs"][1] |= {"evaluations": None, "samples": None}
  expected = ["RNN", "GRU, diverged: equal steps"]
  (legend,) = plots.draw_lines(record).legends
  assert [text.get_text() for text in legend.texts] == expected
  # Without recall, the legend is in the sixth panel.
  legend = plots.draw_lines(record | {"recall": []}).axes[-1].get_legend()
  assert [text.get_text() for text in legend.texts] == expected


def test_no_two_cells_have_the_same_colour():
  assert {*plots.CELLS} == {*plots.COLORS}
  assert len({tuple(color) for color in plots.COLORS.values()}) == len(
    plots.COLORS
  )


COMPARED = "lstm", "gru", "rnn", "a", "b", "c", "far", "d"
LOSSES = 1.60, 1.58, 1.66, 1.61, 1.62, 1.63, 2.30, 1.59
LONG, SHORT = "65 to 128 characters", "9 to 16 characters"


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


def rows(record):
  """Return the names of the rows, and {title: {label: {row: mark}}}."""
  figure = plots.draw(record)
  names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
  order = [name.partition(",")[0] for name in names]
  return names, {
    panel.get_title("left"): {
      line.get_label(): {
        order[round(row)]: x for x, row in line.get_xydata().tolist()
      }
      for line in panel.lines
    }
    for panel in figure.axes
  }


def test_a_row_has_the_values_of_its_cell(many):
  names, found = rows(many)
  assert names[:2] == ["gru, H 11", "d, H 17"]
  losses, context, words, gradients, times = found.values()
  near = {c: x for c, x in zip(COMPARED, LOSSES, strict=True) if c != "far"}
  assert losses["equal steps"] == pytest.approx(near)
  # The LSTM has one run for both budgets; "far" has none after equal time, and
  # 1.68 of the RNN is past the edge.
  timed = {c: x + 0.02 * (c != "lstm") for c, x in near.items() if c != "rnn"}
  assert losses["equal time"] == pytest.approx(timed)
  assert [*context] == [LONG, SHORT]
  assert context[LONG] == pytest.approx(near)
  assert context[SHORT]["lstm"] == pytest.approx(1.7)
  assert "rnn" not in context[SHORT]  # 1.76 is past the edge
  ((_, words),) = words.items()
  assert words == dict.fromkeys(COMPARED, 50)
  ((_, gradients),) = gradients.items()
  assert gradients == dict.fromkeys(COMPARED, 0.5)
  ((_, times),) = times.items()
  assert times["rnn"] == pytest.approx(2)


def test_the_best_is_on_top_and_a_far_loss_is_a_number_at_the_edge(many):
  figure = plots.draw_rows(many)
  numbers = [
    {(t.get_text(), t.get_position()[1]) for t in panel.texts}
    for panel in figure.axes
  ]
  assert numbers == [
    {("2.30 →", 7), ("1.68 →", 6)},  # after equal steps, and equal time
    {("2.30, 2.40 →", 7), ("1.76 →", 6)},  # with a long and a short context
    *[set(), set(), set()],
  ]
  # A line goes from the least to the largest seed.
  first, second, *_ = (
    line.get_segments()[0] for line in figure.axes[0].collections
  )
  np.testing.assert_allclose(first, [[1.57, 0], [1.6, 0]])
  np.testing.assert_allclose(second, [[1.56, 1], [1.65, 1]])
  assert [panel.get_ylim() for panel in figure.axes] == [(7.6, -0.6)] * 5
  assert figure.axes[-1].get_xlabel() == "of lstm's"
  # Past the best six (c, equal time: 1.67), not 2.3.
  assert 1.67 < figure.axes[0].get_xlim()[1] < 1.7


@pytest.mark.parametrize(("far", "is_cut"), [(2.0, False), (2.01, True)])
def test_the_axis_is_at_most_twice_as_long_as_the_best_cells_need(
  far, is_cut, many
):
  """The best six take from 1 to 1.5."""
  losses = 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, far
  many["runs"] = many["runs"][: len(COMPARED)]
  for run, loss in zip(many["runs"], losses, strict=True):
    run["evaluations"] = [{"val_loss": [loss]}]
  panel = plots.draw_rows(many).axes[0]
  assert bool(panel.texts) == is_cut
  if is_cut:  # with a margin of 5 % of 0.5
    assert panel.get_xlim()[1] == pytest.approx(1.525)


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
  _, found = rows(many)
  ((_, gradients),) = found["Gradient 50 back"].items()
  assert gradients.keys() == {*COMPARED[3:]}
  for series in found["Validation loss"].values():
    assert {"lstm", "gru"} & series.keys() == {"gru"}


def test_a_cell_that_diverged_has_the_last_row_which_says_so(many):
  for run in many["runs"]:
    if run["cell"] == "gru" or run["budget"] == "equal time":
      run |= {"evaluations": None, "samples": None}
  names, found = rows(many)
  assert names[0] == "d, H 17, diverged: equal time"
  assert names[-1] == "gru, H 11, diverged: equal steps, equal time"
  assert [*found["Validation loss"]] == ["equal steps"]
  assert "gru" not in found["Validation loss"]["equal steps"]
  many["runs"] = [run for run in many["runs"] if run["cell"] == "gru"]
  names, found = rows(many)
  assert len(names) == 1 and "Validation loss" not in found


def test_panels_and_marks_without_values_are_left_out(many):
  for row in many["gradient_flow"]:
    row["norms"]["h"][50] = 0.0  # underflow
  many["runs"] = [r for r in many["runs"] if r["budget"] == "equal steps"]
  for row in many["context"]:
    row["lengths"] = [16, 100]
  _, found = rows(many)
  assert "Gradient 50 back" not in found and len(found) == 4
  assert [*found["Validation loss"]] == ["equal steps"]
  assert [*found["Loss by context"]] == [SHORT]
