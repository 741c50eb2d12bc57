"""Options of `unroll`, with arguments for T time steps and B rows."""

from functools import cache

import jax
import numpy as np

from lstm_jax.cells.properties import output_size
from lstm_jax.sequence import regularize
from tests.draws import B, T, shapes

DRAW = np.random.default_rng(3)
MASK = DRAW.random((T, B)) < 0.6
RESET = DRAW.random((T, B)) < 0.4
LENGTHS = np.array([T, 0, 2])

# A few that do not depend on the cell: name -> options.
OPTIONS = {
  "plain": {},
  "reverse": {"reverse": True},
  "masked": {
    "lengths": LENGTHS,
    "reset": np.arange(T * B).reshape(T, B) % 4 == 0,
  },
}


@cache
def zoneout_mask(cell):
  """Return which units keep their values, as in training."""
  _, state, _ = shapes(cell, dtype=np.float32)
  rates = type(state)(*(0.3 for _ in state))
  return regularize.zoneout(jax.random.key(1), state, T, rates)


def zoneout_rates(cell):
  """Return the share of the old value that units keep, as in evaluation."""
  _, state, _ = shapes(cell)
  return type(state)(*(0.25 for _ in state))


@cache
def dropout_factors(cell, *axes):
  """Return the factors of h, with these axes before that of the units."""
  size = output_size(cell, shapes(cell)[0])
  return regularize.factors(jax.random.key(2), (*axes, size), 0.5)


# Each feature by itself, and all together: cell -> options.
FEATURES = {
  "mask": lambda cell: {"mask": MASK},
  "lengths": lambda cell: {"lengths": LENGTHS},
  "reset": lambda cell: {"reset": RESET},
  "reverse": lambda cell: {"reverse": True},
  "zoneout": lambda cell: {"zoneout": zoneout_mask(cell)},
  "expected zoneout": lambda cell: {"zoneout": zoneout_rates(cell)},
  "state dropout": lambda cell: {"state_dropout": dropout_factors(cell, B)},
  "all": lambda cell: {
    "mask": MASK,
    "lengths": LENGTHS,
    "reset": RESET,
    "reverse": True,
    "zoneout": zoneout_mask(cell),
    "state_dropout": dropout_factors(cell, T, B),
  },
}
