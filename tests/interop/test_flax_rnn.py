"""Calls that `unroll` computes in place of Flax's RNN, with equal results."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, linen, nnx
from flax.core import meta

from lstm_jax.interop.flax import NNXRNN, LinenRNN, from_linen
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop.flax_pairs import (
  EACH_CELL,
  NAMES,
  count_unrolls,
  inputs,
  linen_cell,
  linen_difference,
  nnx_cell,
  nnx_difference,
)

pytestmark = pytest.mark.usefixtures("flax_promotion")
EXHAUSTIVE = pytest.mark.exhaustive


@EXHAUSTIVE
@pytest.mark.parametrize(  # all dtypes for one cell: all share the conversion
  ("name", "dtype"),
  [
    *product(NAMES[:1], [int, bool, jnp.bfloat16, jnp.float32]),
    *product(NAMES[1:], [int]),
  ],
)
def test_inputs_are_converted_to_the_dtype_of_the_weights(
  name, dtype, key, monkeypatch
):
  calls = count_unrolls(monkeypatch)
  xs = inputs(key, dtype)
  assert linen_difference(linen_cell(name), xs, key) < 1e-12
  assert nnx_difference(nnx_cell(name), xs, key) < 1e-12
  assert len(calls) == 3  # linen's `init` and `apply`, and nnx


@pytest.mark.everyday(1)
@EACH_CELL
@pytest.mark.parametrize(
  "partitioning",
  [
    "with_partitioning",
    pytest.param("with_logical_partitioning", marks=EXHAUSTIVE),
  ],
)
def test_boxed_weights_are_unboxed_and_stay_boxed(
  name, partitioning, key, monkeypatch
):
  calls = count_unrolls(monkeypatch)
  box = getattr(linen, partitioning)
  initializers = linen.initializers
  cell = linen_cell(
    name,
    kernel_init=box(initializers.lecun_normal(), (None, "model")),
    recurrent_kernel_init=box(initializers.orthogonal(), (None, "model")),
    bias_init=box(initializers.zeros_init(), ("model",)),
  )
  xs = inputs(key)
  assert linen_difference(cell, xs, key) < 1e-12
  assert calls
  variables = LinenRNN(cell).init(key, xs)
  boxes = jax.tree.leaves(
    variables, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata)
  )
  assert boxes and all(isinstance(leaf, meta.AxisMetadata) for leaf in boxes)
  weights = variables["params"]["cell"]
  assert worst(from_linen(weights)[1], from_linen(meta.unbox(weights))[1]) == 0


@EXHAUSTIVE
@EACH_CELL
def test_a_carry_is_drawn_by_the_keys_of_flax(name, key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  normal, xs = jax.nn.initializers.normal(), inputs(key)
  call = {"init_key": jax.random.key(5)}
  cell = linen_cell(name, carry_init=normal)
  assert linen_difference(cell, xs, key, call) < 1e-12

  def drawn():
    return {"rngs": nnx.Rngs(3, carry=4)}

  with pytest.warns(UserWarning, match="carry_init"):
    cell = nnx_cell(name, carry_init=normal)
  assert nnx_difference(cell, xs, key, drawn) < 1e-12
  assert nnx_difference(cell, xs, key) < 1e-12
  assert nnx_difference(cell, xs, key, rngs=nnx.Rngs(6)) < 1e-12
  with pytest.warns(UserWarning, match="carry_init|keep_rngs"):
    cell = nnx_cell(name, carry_init=normal, keep_rngs=True)
  assert nnx_difference(cell, xs, key, rngs=False) < 1e-12
  assert len(calls) == 6  # linen's `init` and `apply`, and nnx four times


@pytest.mark.everyday(1)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_each_call_advances_the_keys_as_in_flax(given, dtype, key):
  # In bfloat16, Flax's own RNN runs after the carry was drawn.
  counts, outputs = [], []
  for kind in (NNXRNN, nnx.RNN):
    normal = jax.nn.initializers.normal()
    with pytest.warns(UserWarning, match="carry_init"):
      cell = nnx_cell("GRUCell", dtype=dtype, carry_init=normal)
    module, rngs = kind(cell), nnx.Rngs(3)
    for _ in range(2):
      outputs.append(module(inputs(key), rngs=rngs if given else None))
    counts.append((module.rngs.count[...], rngs.default.count[...]))
  assert worst(outputs[:2], outputs[2:]) < 1e-12
  assert worst(*counts) == 0


def test_weights_are_created_by_apply(key):
  xs = inputs(key)
  ours, theirs = (
    kind(linen_cell("GRUCell")).apply(
      {}, xs, mutable=True, rngs={"params": key}
    )
    for kind in (LinenRNN, linen.RNN)
  )
  assert worst(ours, theirs) < 1e-12
  with pytest.raises(errors.ScopeCollectionNotFound):
    LinenRNN(linen_cell("GRUCell")).apply({}, xs)


@EXHAUSTIVE
def test_forward_mode_is_refused_and_the_hessian_is_that_of_flax(key):
  xs = inputs(key)
  cell = linen_cell("SimpleCell")
  variables = normal_like(key, linen.RNN(cell).init(key, xs))

  def loss(module):
    return lambda x: jnp.sum(module.apply(variables, x) ** 2)

  ours, theirs = loss(LinenRNN(cell)), loss(linen.RNN(cell))
  with pytest.raises(TypeError, match=r"no forward mode.*flax\.linen\.RNN"):
    jax.jvp(ours, (xs,), (xs,))
  module, zeros = NNXRNN(nnx_cell("GRUCell")), jnp.zeros((B, H))
  with pytest.raises(TypeError, match=r"no forward mode.*flax\.nnx\.RNN"):
    jax.jvp(lambda xs: module(xs, initial_carry=zeros), (xs,), (xs,))
  x = xs[:1]
  a, b = (jax.jit(jax.hessian(f))(x) for f in (ours, theirs))
  assert worst(a, b) < 1e-12


def test_a_module_within_a_module_has_the_weights_of_flax(key):
  xs = inputs(key)

  def network(kind):
    class Network(linen.Module):
      @linen.compact
      def __call__(self, xs):
        xs = kind(linen_cell("GRUCell"))(xs)
        return linen.Bidirectional(
          kind(linen_cell("LSTMCell")), kind(linen_cell("SimpleCell"))
        )(xs)

    return Network()

  ours, theirs = network(LinenRNN), network(linen.RNN)
  a, b = (module.init_with_output(key, xs) for module in (ours, theirs))
  assert worst(a, b) < 1e-12


@EXHAUSTIVE
def test_batches_of_any_rank_are_computed_by_unroll(key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  xs = normal_like(key, np.zeros((2, B, T, D)))
  for x in (xs, xs[0, 0]):
    assert linen_difference(linen_cell("GRUCell"), x, key) < 1e-12
    assert nnx_difference(nnx_cell("GRUCell"), x, key) < 1e-12
  assert len(calls) == 2 * 3  # linen's `init` and `apply`, and nnx
