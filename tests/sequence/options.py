"""Options of `unroll` with which the tests of its loops run every cell."""

import jax.numpy as jnp

from tests.draws import B, T

OPTIONS = {
  "plain": {},
  "reverse": {"reverse": True},
  "masked": {
    "lengths": jnp.array([T, 0, 2]),
    "reset": jnp.arange(T * B).reshape(T, B) % 4 == 0,
  },
}
