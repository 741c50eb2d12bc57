"""The lines of a comparison's figure."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.comparison import plots
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


def test_cells_beyond_the_colors_use_them_again():
  few, many = (
    plots.colors(["lstm", *map(str, range(count))]) for count in (11, 12)
  )
  # 3 colors belong to the RNN, the GRU and the LSTM, and 11 to any others.
  assert len({*few.values()}) == 14 and few.items() < many.items()
  assert many["11"] == many["0"]


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
