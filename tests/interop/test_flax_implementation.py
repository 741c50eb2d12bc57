"""The RNN modules for Flax with a GPU kernel as their loop over time."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from lstm_jax import unroll
from lstm_jax.interop.flax import NNXRNN, LinenRNN, from_linen, from_nnx
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop.flax_pairs import count_unrolls, inputs, linen_cell, nnx_cell
from tests.interpreting import (
  NEEDS_KERNELS,
  as_if_on_an_h100,
  count_kernels,
  interpreted,
)

pytestmark = pytest.mark.usefixtures("flax_promotion")
NARROW, WIDE = jnp.bfloat16, jnp.float32
# (dtype, param_dtype) of a cell, and the dtype of the products' operands.
DTYPES = [
  (NARROW, WIDE, NARROW),
  (NARROW, NARROW, NARROW),
  (WIDE, NARROW, WIDE),
  (None, NARROW, WIDE),  # as the inputs are float32
]
Linen = partial(LinenRNN, implementation="mosaic_gpu")
NNX = partial(NNXRNN, implementation="mosaic_gpu")


@pytest.fixture
def calls(monkeypatch):
  """Return a list of the kernels that are called; scans stand in for them."""
  with as_if_on_an_h100(monkeypatch):
    yield count_kernels(monkeypatch)


def cells(name, dtype, param_dtype):
  """Return the linen and the nnx cell of a name."""
  options = {
    "dtype": dtype,
    "param_dtype": param_dtype,
    # QR, for orthogonal weights, has no bfloat16.
    "recurrent_kernel_init": linen.initializers.lecun_normal(),
  }
  return linen_cell(name, **options), nnx_cell(name, **options)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["OptimizedLSTMCell", "GRUCell", "SimpleCell"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_the_cells_dtype_is_that_of_the_operands_of_products(
  name, dtypes, calls, key
):
  dtype, param_dtype, compute_dtype = dtypes
  linen_one, nnx_one = cells(name, dtype, param_dtype)
  xs = inputs(key, WIDE)
  module = Linen(linen_one)
  variables = normal_like(key, jax.eval_shape(module.init, key, xs))
  calls.clear()
  outputs = module.apply(variables, xs)
  assert len(calls) == 1 and outputs.dtype == param_dtype
  cell, params = from_linen(variables["params"]["cell"])
  state = jax.tree.map(  # `initial_state` has c in float32
    lambda x: x.astype(param_dtype), cell.initial_state(params, (B,))
  )
  options = {"time_major": False, "compute_dtype": compute_dtype}
  _, expected = unroll(cell, params, state, xs, **options)
  assert worst(outputs, expected) == 0
  outputs = NNX(nnx_one)(xs)
  assert len(calls) == 2 and outputs.dtype == param_dtype
  _, expected = unroll(cell, from_nnx(nnx_one)[1], state, xs, **options)
  assert worst(outputs, expected) == 0


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["OptimizedLSTMCell", "GRUCell"])
def test_outputs_have_the_dtype_of_flax_and_nearly_its_values(name, calls, key):
  linen_one, nnx_one = cells(name, NARROW, WIDE)
  xs = inputs(key, WIDE)
  theirs = linen.RNN(linen_one)
  variables = theirs.init(key, xs)
  for found, expected in (
    (Linen(linen_one).apply(variables, xs), theirs.apply(variables, xs)),
    (NNX(nnx_one)(xs), nnx.RNN(nnx_one)(xs)),
  ):
    assert found.dtype == expected.dtype == WIDE
    # Flax computes gates in bfloat16, and the kernels in float32.
    assert worst(found, expected) < 2e-2
  assert len(calls) == 2


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_without_kernels_a_narrow_dtype_runs_in_flax(
  implementation, key, monkeypatch
):
  calls = count_unrolls(monkeypatch)
  xs = inputs(key, WIDE)
  cell, _ = cells("GRUCell", NARROW, WIDE)
  module = LinenRNN(cell, implementation=implementation)
  variables = module.init(key, xs)
  expected = linen.RNN(cell).apply(variables, xs)
  assert worst(module.apply(variables, xs), expected) == 0
  assert not calls
  assert LinenRNN(cell).implementation is None
  assert NNXRNN(nnx_cell("GRUCell")).implementation is None


def refuses(text):
  return pytest.raises(ValueError, match=f"^implementation='mosaic_gpu' {text}")


@pytest.mark.usefixtures("calls")
def test_what_would_run_in_flax_is_refused(key):
  xs = inputs(key, WIDE)
  text = "is not possible here: "
  shape = (
    "the shape or type of the inputs, the carry or seq_lengths needs Flax's"
  )
  in_float32 = {"param_dtype": WIDE}
  gru = linen_cell("GRUCell", **in_float32)
  other, tanh = (
    linen_cell("MGUCell", **in_float32),
    linen_cell("GRUCell", gate_fn=jnp.tanh, **in_float32),
  )
  for module, call, cause in (
    (Linen(other), {}, "the cell MGUCell or one of its options needs Flax's"),
    (Linen(tanh), {}, "the cell GRUCell or one of its options needs Flax's"),
    (Linen(gru, unroll=2), {}, "an option of the RNN, or an interceptor of"),
    (Linen(gru), {"seq_lengths": jnp.array([T])}, shape),
    (Linen(gru), {"seq_lengths": jnp.ones(B)}, shape),  # floats
    (Linen(gru), {"initial_carry": jnp.zeros((1, H))}, shape),
  ):
    with refuses(f"{text}{cause}"):
      module.init(key, xs, **call)
  with refuses(f"{text}{shape}"):
    Linen(gru).init(key, xs[:, :0])
  cell = nnx_cell("GRUCell", dtype=WIDE, **in_float32)
  for module, call, cause in (
    (NNX(cell, unroll=2), {}, "an option of the RNN, or an interceptor of"),
    (NNX(cell), {"seq_lengths": jnp.array([T])}, shape),
  ):
    with refuses(f"{text}{cause}"):
      module(xs, **call)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("calls")
def test_other_dtypes_and_sizes_are_refused_by_unroll(key):
  xs = inputs(key, WIDE)
  with refuses("takes float32 and bfloat16, got params.w_x of float64"):
    Linen(linen_cell("GRUCell")).init(key, xs)
  with refuses("takes float32 and bfloat16, got params.w_x of float64"):
    NNX(nnx_cell("GRUCell"))(xs)
  with refuses("takes H up to 256 with products in float32, got 257"):
    Linen(linen.GRUCell(257)).init(key, xs)


def test_a_cpu_and_an_unknown_implementation_are_refused(key):
  xs = inputs(key, WIDE)
  cell, other = linen.GRUCell(H), nnx.GRUCell(D, H, rngs=nnx.Rngs(0))
  with refuses("needs "):
    Linen(cell).init(key, xs)
  with refuses("needs "):
    NNX(other)(xs)
  message = "^implementation must be None, 'xla' or 'mosaic_gpu', got 'cuda'"
  for length in (T, 0):  # without a time step, unroll is not called
    with pytest.raises(ValueError, match=message):
      LinenRNN(cell, implementation="cuda").init(key, xs[:, :length])
    with pytest.raises(ValueError, match=message):
      NNXRNN(other, implementation="cuda")(xs[:, :length])


@NEEDS_KERNELS
def test_kernels_have_nearly_the_values_and_gradients_of_flax(key):
  """The kernels multiply in bfloat16, and Flax in float32."""
  xs = inputs(key, WIDE)
  lengths = jnp.array([T, 2, 4])
  assert len(lengths) == B
  exact, narrow = (linen.OptimizedLSTMCell(H, dtype=d) for d in (None, NARROW))
  theirs = linen.RNN(exact, return_carry=True)
  variables = theirs.init(key, xs)

  def gradient(module):
    def loss(variables, xs):
      carry, hs = module.apply(variables, xs, seq_lengths=lengths)
      # No row ends before time step 2; after its end, Flax's outputs differ.
      return sum(map(jnp.sum, carry)) + (hs[:, :2] ** 2).sum()

    return jax.value_and_grad(loss, (0, 1))(variables, xs)

  expected = gradient(theirs)
  with interpreted():
    found = gradient(Linen(narrow, return_carry=True))
  size = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected))
  assert worst(found, expected) < 1e-2 * size
  assert size > 1
