import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.policies import plots
from experiments.policies.plots import curve, draw


def test_a_curve_leaves_out_updates_in_which_a_seed_ended_no_episode():
  returns = [[None, 0.5], [0.25, 0.75], [None, None], [1.0, 0.0]]
  steps, known = curve(returns, 100)
  assert list(steps) == [200, 400]
  assert np.array_equal(known, [[0.25, 0.75], [1.0, 0.0]])


def test_a_run_in_which_no_episode_ended_has_an_empty_curve():
  steps, known = curve([[None, None, None]], 100)
  assert steps.shape == (0,) and known.shape == (0, 3)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
  """Return a function: returns [U, 2] -> (the ends labelled, the panel)."""
  found, label_ends, savefig = [], plots.label_ends, Figure.savefig

  def label(panel, ends):
    found.append(ends)
    label_ends(panel, ends)

  def save(figure, *args, **kwargs):
    found.append(figure.axes[0])
    savefig(figure, *args, **kwargs)

  monkeypatch.setattr(plots, "label_ends", label)
  monkeypatch.setattr(Figure, "savefig", save)

  def run(returns):
    found.clear()
    record = {
      "config": {"num_seeds": 2},
      "task": "T-maze",
      "guessing": -0.5,
      "steps_per_update": 100,
      "networks": {"gru": {"returns": returns}},
    }
    draw(record, tmp_path / "policy.png")
    ends, panel = found
    return [end[:2] for end in ends], panel

  return run


@pytest.mark.parametrize(
  ("returns", "limit"),
  [
    ([[0.0, 0.0], [-2.5, 1.0]], -2.5),
    ([[-2.5, 0.0], [1.0, 1.0]], -1.05),  # the beginning is cut off
  ],
)
def test_the_axis_of_returns_shows_where_the_curves_end(returns, limit, drawn):
  _, panel = drawn(returns)
  assert panel.get_ylim() == (limit, 1.05)


GUESSING = -0.5, "best without memory"


def test_a_line_is_the_mean_of_the_seeds_and_its_shade_their_range(drawn):
  ends, panel = drawn([[0.0, 0.5], [0.25, 1.0]])
  assert ends == [(0.625, "gru"), GUESSING]
  line, guessing = panel.lines
  assert line.get_xydata().tolist() == [[100, 0.25], [200, 0.625]]
  assert (line.get_marker(), line.get_color()) == ("None", "tab:green")
  assert [*guessing.get_ydata()] == [-0.5, -0.5]
  (shade,) = panel.collections
  assert {*map(tuple, shade.get_paths()[0].vertices)} == {
    (100, 0),
    (100, 0.5),
    (200, 0.25),
    (200, 1),
  }


def test_a_single_update_is_a_point_and_no_update_has_no_label(drawn):
  ends, panel = drawn([[0.0, 0.5]])
  assert ends == [(0.25, "gru"), GUESSING]
  assert panel.lines[0].get_marker() == "."  # a line of one point is invisible
  ends, _ = drawn([[None, 0.5]])
  assert ends == [GUESSING]
