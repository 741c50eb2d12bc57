"""The numbers that `gradcheck` takes are checked before it runs."""

import math
from fractions import Fraction

import jax.numpy as jnp
import pytest

from lstm_jax.testing import gradcheck


@pytest.mark.parametrize("name", ["max_coordinates", "num_directions"])
@pytest.mark.parametrize("value", [-1, 1.5])
def test_numbers_of_comparisons_are_counts(name, value, key):
  message = f"^{name} must be an integer ≥ 0, got {value}$"
  with pytest.raises(ValueError, match=message):
    gradcheck(jnp.sin, jnp.sin, jnp.ones(3), key, **{name: value})


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, math.nan, math.inf])
def test_the_step_of_the_differences_is_a_number_above_zero(epsilon, key):
  message = f"^epsilon must be a finite number above 0, got {epsilon}$"
  with pytest.raises(ValueError, match=message):
    gradcheck(jnp.sin, jnp.sin, jnp.ones(3), key, epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [None, "1", 1j])
def test_the_step_of_the_differences_is_a_number(epsilon, key):
  message = f"^epsilon must be a number, got {epsilon!r}$"
  with pytest.raises(ValueError, match=message):
    gradcheck(jnp.sin, jnp.sin, jnp.ones(3), key, epsilon=epsilon)


def test_the_step_may_be_any_number(key):
  reports = [
    gradcheck(jnp.sin, jnp.sin, jnp.ones(3), key, epsilon=epsilon)
    for epsilon in (0.25, Fraction(1, 4), jnp.float32(0.25))
  ]
  assert reports == reports[:1] * 3
