"""Dtypes, byte order and memory of arrays from and for other libraries."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, gru_reset_before, lstm, rnn
from lstm_jax.interop.cudnn import from_cudnn, to_cudnn
from lstm_jax.interop.equinox import from_equinox
from lstm_jax.interop.haiku import from_haiku, to_haiku
from lstm_jax.interop.keras import from_keras, to_keras
from lstm_jax.interop.tensors import as_array, copied_arrays
from lstm_jax.interop.torch import from_torch, to_torch
from tests.draws import D, H, worst

ROWS = 4 * H  # of an LSTM
BIAS = np.ones(ROWS)
W_X, W_H = np.ones((D, ROWS)), np.ones((H, ROWS))


def from_linen(weights):
  flax = pytest.importorskip("lstm_jax.interop.flax")
  return flax.from_linen(weights)


# For each library, a function that reads weights, and an LSTM's weights for it.
CALLS = {
  "cudnn": (
    lambda weights: from_cudnn(weights, D, H),
    np.ones(ROWS * (D + H + 2)),
  ),
  "equinox": (
    from_equinox,
    SimpleNamespace(weight_ih=W_X.T, weight_hh=W_H.T, bias=BIAS, use_bias=True),
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
    {"lstm/linear": {"w": np.concatenate([W_X, W_H]), "b": BIAS}},
  ),
  "keras": (from_keras, [W_X, W_H, BIAS]),
  "keras, no bias": (from_keras, [W_X, W_H]),
  "torch": (
    from_torch,
    {
      "weight_ih_l0": W_X.T,
      "weight_hh_l0": W_H.T,
      "bias_ih_l0": BIAS,
      "bias_hh_l0": BIAS,
    },
  ),
}


def to_linen(params):
  flax = pytest.importorskip("lstm_jax.interop.flax")
  return flax.to_linen(params)


@pytest.mark.parametrize("library", CALLS)
def test_without_jax_enable_x64_float64_becomes_float32(library):
  read, weights = CALLS[library]
  for enabled, dtype in ((True, jnp.float64), (False, jnp.float32)):
    with jax.enable_x64(enabled):
      # Without the cell, which some functions return beside the weights.
      leaves = [
        x for x in jax.tree.leaves(read(weights)) if hasattr(x, "dtype")
      ]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
  ("write", "cells", "without"),  # the dtype without jax_enable_x64
  [
    (lambda params: to_torch((params,)), (lstm, gru, rnn), np.float64),
    (to_haiku, (lstm, gru_reset_before, rnn), np.float32),
    (to_linen, (lstm, gru, rnn), np.float32),
  ],
  ids=["torch", "haiku", "linen"],
)
def test_arrays_of_numpy_are_written_in_one_dtype(write, cells, without, key):
  for cell in cells:
    like = jax.eval_shape(lambda cell=cell: cell.init(key, D, H))
    params = jax.tree.map(lambda x: np.ones(x.shape), like)
    for enabled, dtype in ((True, np.float64), (False, without)):
      with jax.enable_x64(enabled):
        arrays = jax.tree.leaves(write(params))
      assert {array.dtype for array in arrays} == {np.dtype(dtype)}


@pytest.mark.parametrize("library", ["cudnn", "keras", "torch"])
def test_arrays_of_the_other_byte_order_are_read(library):
  read, weights = CALLS[library]
  swapped = jax.tree.map(lambda x: x.astype(x.dtype.newbyteorder()), weights)
  # The last item: params or layers after the cell, or cuDNN's only layer.
  assert worst(read(swapped)[-1], read(weights)[-1]) == 0


@pytest.mark.parametrize(
  "dtype",
  [
    jnp.float4_e2m1fn,
    jnp.float8_e4m3fn,
    pytest.param(
      np.longdouble,
      marks=pytest.mark.skipif(
        np.dtype(np.longdouble).itemsize == 8,
        reason="longdouble is float64 here",
      ),
    ),
  ],
)
def test_floats_of_less_than_16_or_more_than_64_bits_are_refused(dtype):
  weights = [W_X, W_H, BIAS.astype(dtype)]
  with pytest.raises(
    ValueError, match=r"^bias must hold floats of 16 to 64 bits, got float"
  ):
    from_keras(weights)


def aligned(x):
  """Return a copy aligned to 64 bytes, so that JAX may read it in place."""
  memory = np.empty(x.nbytes + 64, np.uint8)
  start = -memory.ctypes.data % 64
  result = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
  result[...] = x
  return result


@pytest.mark.parametrize(
  ("convert", "params"),
  [
    (lambda p: to_cudnn([p]), lstm.LSTMParams(W_X, W_H, BIAS)),
    (from_keras, [W_X, W_H, BIAS]),
    (
      lambda p: from_haiku({"lstm/linear": p}),
      {"w": np.concatenate([W_X, W_H]), "b": BIAS},
    ),
    (to_haiku, lstm.LSTMParams(W_X, W_H, BIAS)),
    (to_linen, lstm.LSTMParams(W_X, W_H, BIAS)),
  ],
  ids=["to_cudnn", "from_keras", "from_haiku", "to_haiku", "to_linen"],
)
def test_memory_overwritten_while_the_device_is_busy_is_not_read(
  convert, params
):
  """A loop that loads checkpoints into one buffer overwrites it at once."""
  params = jax.tree.map(aligned, params)
  expected = jax.tree.map(np.array, jax.tree.leaves(convert(params)))
  product = jax.jit(lambda x: x @ x @ x)
  busy = [product(np.ones((600, 600), "f")) for _ in range(4)]
  found = jax.tree.leaves(convert(params))
  for x in jax.tree.leaves(params):
    x[...] = 7
  assert all(map(np.array_equal, found, expected))
  jax.block_until_ready(busy)


def test_arrays_have_memory_of_their_own():
  assert not np.shares_memory(as_array("b", BIAS), BIAS)
  params = copied_arrays(lstm.LSTMParams(W_X, W_H, BIAS))
  assert not np.shares_memory(params.w_x, W_X)


def test_shapes_in_place_of_arrays_are_refused(key):
  shapes = jax.eval_shape(lambda: lstm.init(key, D, H))
  for convert in (to_haiku, to_keras, to_linen):
    with pytest.raises(
      ValueError, match=r"^params\.w_x must be an array of fl"
    ):
      convert(shapes)
