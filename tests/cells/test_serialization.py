"""Names of the library's NamedTuples in exported functions."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import pytest
from jax import export

from lstm_jax.cells.serialization import serializable


def test_a_class_made_anew_is_not_serialized_but_the_first_one_still_is():
  """As when the module of a cell is reloaded."""
  first, second = (
    serializable(namedtuple("MadeTwice", ["h"])) for _ in range(2)
  )
  state = jnp.array(1.5)
  of_first, of_second = (
    export.export(jax.jit(lambda x: x))(kind(state)) for kind in (first, second)
  )
  found = export.deserialize(of_first.serialize()).call(first(state))
  assert type(found) is first and found.h == 1.5
  with pytest.raises(ValueError, match="MadeTwice"):
    of_second.serialize()
