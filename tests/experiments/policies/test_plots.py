import numpy as np

from experiments.policies.plots import curve


def test_a_curve_leaves_out_updates_in_which_a_seed_ended_no_episode():
  returns = [[None, 0.5], [0.25, 0.75], [None, None], [1.0, 0.0]]
  steps, known = curve(returns, 100)
  assert list(steps) == [200, 400]
  assert np.array_equal(known, [[0.25, 0.75], [1.0, 0.0]])


def test_a_run_in_which_no_episode_ended_has_an_empty_curve():
  steps, known = curve([[None, None, None]], 100)
  assert steps.shape == (0,) and known.shape == (0, 3)
