"""A cell's `backward` checks the cotangent of the state that it is given."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lru, lstm
from tests.draws import B, H, arguments

SHAPE = re.escape(f"d_state.h must be [{B}, {H}], got (1, {H})")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda d: d._replace(h=d.h[:1]), f"^{SHAPE}$"),  # it would broadcast
    (lambda d: d._replace(h=1.0), r"^d_state\.h must be .*, got \(\)$"),
    (lambda d: d._replace(h=None), r"^d_state\.h must be an array, got None"),
    (lambda d: d._replace(h="h"), r"^d_state\.h must be an array, got str$"),
    (
      lambda d: d._replace(h=np.ones(d.h.shape, int)),
      r"^d_state\.h must be floats, got int(32|64)$",
    ),
    (
      lambda d: jax.eval_shape(lambda: d),
      r"^d_state\.h must be an array, got ShapeDtypeStruct$",
    ),
    (lambda d: None, r"^d_state must be of type \w+State, got NoneType$"),
    (lambda d: tuple(d), r"^d_state must be of type \w+State, got tuple$"),
  ],
)
@pytest.mark.parametrize("cell", [lstm, gru, lru])
def test_a_cotangent_that_does_not_fit_is_refused(cell, change, message, key):
  params, state, xs = arguments(cell, key)
  after, saved = cell.forward(params, state, xs[0])
  d_state = jax.tree.map(jnp.ones_like, after)
  cell.backward(saved, d_state)
  with pytest.raises(ValueError, match=message):
    cell.backward(saved, change(d_state))
