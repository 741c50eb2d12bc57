"""Names of the library's NamedTuples in exported functions."""

from collections import namedtuple
from itertools import count

import jax
import jax.numpy as jnp
import pytest
from jax import export

from lstm_jax.cells.serialization import serializable

NUMBERS = count()


def test_a_class_made_anew_is_not_serialized_but_the_first_one_still_is():
  """As when the module of a cell is reloaded."""
  name = f"MadeTwice{next(NUMBERS)}"  # no name can be registered again
  first, second = (serializable(namedtuple(name, ["h"])) for _ in range(2))
  state = jnp.array(1.5)
  of_first, of_second = (
    export.export(jax.jit(lambda x: x))(kind(state)) for kind in (first, second)
  )
  found = export.deserialize(of_first.serialize()).call(first(state))
  assert type(found) is first and found.h == 1.5
  with pytest.raises(ValueError, match=name):
    of_second.serialize()
