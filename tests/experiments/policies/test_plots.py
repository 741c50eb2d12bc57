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


@pytest.mark.parametrize(
  ("returns", "limit"),
  [
    ([[0.0, 0.0], [-2.5, 1.0]], -2.5),
    ([[-2.5, 0.0], [1.0, 1.0]], -1.05),  # the beginning is cut off
  ],
)
def test_the_axis_of_returns_shows_where_the_curves_end(
  returns, limit, tmp_path, monkeypatch
):
  limits, save = [], Figure.savefig

  def savefig(figure, *args, **kwargs):
    limits.append(figure.axes[0].get_ylim())
    save(figure, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", savefig)
  record = {
    "config": {"num_seeds": 2},
    "task": "T-maze",
    "guessing": 0.0,
    "steps_per_update": 100,
    "networks": {"gru": {"returns": returns}},
  }
  draw(record, tmp_path / "policy.png")
  assert limits == [(limit, 1.05)]


def test_a_line_is_the_mean_of_the_seeds_and_its_shade_their_range(
  tmp_path, monkeypatch
):
  record = {
    "config": {"num_seeds": 2},
    "task": "T-maze",
    "guessing": -0.5,
    "steps_per_update": 100,
    "networks": {"gru": {"returns": [[0.0, 0.5], [0.25, 1.0]]}},
  }
  found = []
  monkeypatch.setattr(
    plots, "label_ends", lambda panel, ends: found.extend(ends)
  )
  monkeypatch.setattr(
    Figure, "savefig", lambda figure, *_, **__: found.append(figure.axes[0])
  )
  draw(record, tmp_path / "policy.png")
  *ends, panel = found
  assert [end[:2] for end in ends] == [
    (0.625, "gru"),
    (-0.5, "best without memory"),
  ]
  line, guessing = panel.lines
  assert line.get_xydata().tolist() == [[100, 0.25], [200, 0.625]]
  assert [*guessing.get_ydata()] == [-0.5, -0.5]
  (shade,) = panel.collections
  assert {*map(tuple, shade.get_paths()[0].vertices)} == {
    (100, 0),
    (100, 0.5),
    (200, 0.25),
    (200, 1),
  }
  found.clear()
  record["networks"]["gru"]["returns"] = [[0.0, 0.5]]  # a point, with a label
  draw(record, tmp_path / "policy.png")
  assert found[0][:2] == (0.25, "gru")
