"""`worst`, with which the tests compare results, sees every element."""

import numpy as np
import pytest

from tests.draws import worst


def test_the_worst_difference_is_that_of_any_array():
  good = {"a": np.zeros(2), "b": np.zeros((2, 3))}
  assert worst(good, good) == 0
  for name, place in (("a", 1), ("b", (1, 2))):
    for error, found in ((-0.5, 0.5), (np.nan, np.nan), (np.inf, np.inf)):
      bad = {k: v.copy() for k, v in good.items()}
      bad[name][place] = error
      np.testing.assert_equal(worst(bad, good), found)
      np.testing.assert_equal(worst(good, bad), found)


def test_trees_of_other_shapes_are_not_compared():
  with pytest.raises(AssertionError):
    worst({"a": np.zeros(2)}, {"a": np.zeros((1, 2))})
