"""Gates near 0 and near 1; with bfloat16 products, they are saved in float16.

`pack_gate` saves a gate y > ½ as y − 1, so that a small 1 − y keeps its bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interpreting import NEEDS_KERNELS
from tests.mosaic_gpu.layers import (
  BFLOAT16,
  CELLS,
  agree,
  draw,
  errors,
  kernel_results,
  results,
)

pytestmark = [NEEDS_KERNELS, pytest.mark.usefixtures("threads")]

GATES = {"lstm": "ifgo", "gru": "rzn"}
PRODUCTS = {"compute_dtype": jnp.bfloat16}


def saturated(name, biases, steps):
  """Return (params, state, xs) with these biases, by the letter of a gate.

  The weights are so small that a gate stays near the sigmoid of its bias.
  """
  params, state, xs = draw(CELLS[name], steps=steps)
  params = jax.tree.map(lambda x: 0.1 * x, params)
  b = params.b.reshape(len(GATES[name]), -1)
  for gate, bias in biases.items():
    b = b.at[GATES[name].index(gate)].set(bias)
  return params._replace(b=b.reshape(-1)), state, xs


def split(name, found):
  """Split the gradients of the weights in `found`, from `results`, by gate."""
  outputs, (gradients,) = found
  parts = len(GATES[name])
  params = gradients["params"]
  by_gate = {
    field: jnp.split(getattr(params, field), parts, axis=-1)
    for field in ("w_x", "w_h", "b")
  }
  return outputs, {**gradients, **by_gate}


def test_a_packed_gate_keeps_its_bits_near_0_and_near_1():
  from lstm_jax.mosaic_gpu.registers import pack_gate, unpack_gate

  small = np.concatenate([[0], 2.0 ** -np.arange(1, 25, 0.01)])
  y = np.concatenate([small, 1 - small]).astype(np.float32)
  saved = pack_gate(jnp.asarray(y)).astype(jnp.float16)
  found = np.asarray(unpack_gate(saved.astype(jnp.float32)), np.float64)
  error = abs(found - y)
  distance = np.minimum(y, 1 - y.astype(np.float64))
  # A float16 is rounded by 2⁻¹¹ of its value at most, or below 2⁻¹⁴ by 2⁻²⁵. A
  # gate of 1 is read back as 1 − 2⁻²⁴.
  assert np.all(error <= np.maximum(2.0**-11 * distance, 2.0**-24))


def test_a_packed_gate_in_float32_is_the_gate_but_for_1():
  from lstm_jax.mosaic_gpu.registers import pack_gate, unpack_gate

  y = jax.nn.sigmoid(jnp.linspace(-100, 16, 1000, dtype=jnp.float32))
  np.testing.assert_array_equal(unpack_gate(pack_gate(y)), y)
  one = np.float32(1)
  assert unpack_gate(pack_gate(jnp.asarray(one))) == np.nextafter(one, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("bias", [-6, 6, 20])
@pytest.mark.parametrize(("name", "gates"), [("lstm", "ifo"), ("gru", "z")])
def test_gradients_of_saturated_gates_equal_the_scan(name, gates, bias):
  arguments = saturated(name, dict.fromkeys(gates, bias), 4)
  found = split(name, kernel_results(CELLS[name], arguments, **PRODUCTS))
  expected = split(name, results(None, CELLS[name], arguments, **PRODUCTS))
  assert agree(found, expected, BFLOAT16), errors(found, expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("name", "biases"), [("lstm", {"i": -2, "f": 8.4}), ("gru", {"z": 8.4})]
)
def test_gradients_of_a_long_memory_equal_the_scan(name, biases):
  """A gate of σ(8.4) = 1 − 1/4448 keeps a state for thousands of time steps."""
  arguments = saturated(name, biases, 192)
  found = kernel_results(CELLS[name], arguments, **PRODUCTS)
  expected = results(None, CELLS[name], arguments, **PRODUCTS)
  assert agree(found, expected, BFLOAT16), errors(found, expected)
