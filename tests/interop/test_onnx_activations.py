"""Slopes of hard sigmoids, which ONNX keeps in float32."""

import numpy as np
import pytest

from lstm_jax import lstm
from lstm_jax.cells import make_hard_sigmoid
from lstm_jax.interop import onnx as interop
from tests.interop.onnx_models import layer_weights, onnx

SINGLE = float(np.float32(np.pi))  # neither a short decimal nor a fraction


@pytest.mark.parametrize(
  ("slope", "expected"),
  [
    *((x, x) for x in (0.2, 0.3, 0.25, 1.0, 20.0, 0.166667, 0.123456, 1e-6)),
    *((x, x) for x in (1 / 6, 1 / 3, 2 / 3, 5 / 6, 1 / 7, 4 / 3, 3 / 11)),
    # Read as the shortest decimal that is the same in float32.
    (SINGLE, float(str(np.float32(np.pi)))),
  ],
)
def test_a_slope_survives_a_round_trip(slope, expected, key):
  cell = lstm.with_activations(make_hard_sigmoid(slope))
  node, tensors = interop.to_onnx(cell, layer_weights(lstm, key, False))
  found = interop.from_onnx(node, tensors).cell
  assert found is lstm.with_activations(make_hard_sigmoid(expected))


@pytest.mark.parametrize("alpha", [-0.2, 0.0, float("inf")])
def test_an_alpha_that_is_no_slope_is_refused(alpha, key):
  cell = lstm.with_activations(make_hard_sigmoid(0.2))
  node, tensors = interop.to_onnx(cell, layer_weights(lstm, key, False))
  for attribute in node.attribute:
    if attribute.name == "activation_alpha":
      attribute.floats[0] = alpha
  name = "activation_alpha of HardSigmoid"
  message = rf"^{name} must be in \(0, inf\), got {alpha:g}$"
  with pytest.raises(ValueError, match=message):
    interop.from_onnx(node, tensors)


def test_alphas_belong_to_the_hard_sigmoids_in_their_order(key):
  cell = lstm.with_activations(make_hard_sigmoid(0.3), make_hard_sigmoid(0.4))
  node, tensors = interop.to_onnx(cell, layer_weights(lstm, key, True))
  assert interop.from_onnx(node, tensors).cell is cell
  kept = [
    attribute
    for attribute in node.attribute
    if attribute.name not in ("activation_alpha", "activation_beta")
  ]
  del node.attribute[:]
  names = ["HARDSIGMOID", "hardsigmoid", "tanh"] * 2  # in any case
  for attribute in kept:
    if attribute.name == "activations":
      attribute.strings[:] = [name.encode() for name in names]
  node.attribute.extend(kept)
  default = make_hard_sigmoid(0.2)
  found = interop.from_onnx(node, tensors).cell
  assert found is lstm.with_activations(default, default)
  # Each of the two directions has two hard sigmoids: the fifth number is wrong.
  more = onnx.helper.make_attribute("activation_beta", [0.5] * 5)
  node.attribute.append(more)
  message = "^activation_beta must have at most one number for .*, got 1 more$"
  with pytest.raises(ValueError, match=message):
    interop.from_onnx(node, tensors)
