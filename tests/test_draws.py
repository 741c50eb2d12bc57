"""The random arrays of the tests, and how two results are compared."""

import jax
import numpy as np
import pytest

from tests.draws import D, H, normal_like, weighed, worst


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


def test_cotangents_are_not_drawn_as_the_arguments_are(key):
  """`tests.draws` draws both, but not from one stream of random numbers.

  Otherwise the first arrays would equal their cotangents.
  """
  zeros = tuple(np.zeros(shape) for shape in ((D, H), (H,)))
  cotangents = jax.grad(weighed(lambda x: x, key))(zeros)
  for drawn, cotangent in zip(normal_like(key, zeros), cotangents, strict=True):
    assert np.abs(drawn).min() > 0 < np.abs(cotangent).min()
    assert not np.isclose(drawn, cotangent, rtol=0.01).any()
