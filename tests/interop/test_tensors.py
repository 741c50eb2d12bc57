"""The dtypes of arrays from other libraries."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.interop.cudnn import from_cudnn
from lstm_jax.interop.equinox import from_equinox
from lstm_jax.interop.haiku import from_haiku
from lstm_jax.interop.keras import from_keras
from lstm_jax.interop.torch import from_torch
from tests.draws import D, H

ROWS = 4 * H  # of an LSTM
B = np.ones(ROWS)
W_X, W_H = np.ones((D, ROWS)), np.ones((H, ROWS))


def from_linen(weights):
  flax = pytest.importorskip("lstm_jax.interop.flax")
  return flax.from_linen(weights)


CALLS = {
  "cudnn": (
    lambda weights: from_cudnn(weights, D, H),
    np.ones(ROWS * (D + H + 2)),
  ),
  "equinox": (
    from_equinox,
    SimpleNamespace(weight_ih=W_X.T, weight_hh=W_H.T, bias=B, use_bias=True),
  ),
  "flax": (
    from_linen,
    {f"i{gate}": {"kernel": np.ones((D, H))} for gate in "ifgo"}
    | {
      f"h{gate}": {"kernel": np.ones((H, H)), "bias": np.ones(H)}
      for gate in "ifgo"
    },
  ),
  "haiku": (
    from_haiku,
    {"lstm/linear": {"w": np.concatenate([W_X, W_H]), "b": B}},
  ),
  "keras": (from_keras, [W_X, W_H, B]),
  "torch": (
    from_torch,
    {
      "weight_ih_l0": W_X.T,
      "weight_hh_l0": W_H.T,
      "bias_ih_l0": B,
      "bias_hh_l0": B,
    },
  ),
}


@pytest.mark.parametrize("library", CALLS)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_without_jax_enable_x64_float64_becomes_float32(library):
  read, weights = CALLS[library]
  for enabled, dtype in ((True, jnp.float64), (False, jnp.float32)):
    with jax.enable_x64(enabled):
      leaves = [
        x for x in jax.tree.leaves(read(weights)) if hasattr(x, "dtype")
      ]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}


@pytest.mark.skipif(
  np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 here"
)
def test_floats_of_more_than_64_bits_are_refused():
  weights = [W_X, W_H, B.astype(np.longdouble)]
  with pytest.raises(
    ValueError, match=r"^bias must hold floats of at most 64 bits, got float"
  ):
    from_keras(weights)
