"""The loop over time that is traced for GPUs, compared on the CPU."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

from lstm_jax import Autodiff, Explicit, lstm, unroll
from lstm_jax.cells.platform import is_cpu, traced_for
from lstm_jax.sequence import state_cotangents
from lstm_jax.sequence.rows import GPU_STEPS, Joined, join, scan_rows, separate
from tests.contract import each_cell
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst

OPTIONS = {
  "plain": {},
  "reverse": {"reverse": True},
  "masked": {
    "lengths": jnp.array([T, 0, 2]),
    "reset": jnp.arange(T * B).reshape(T, B) % 4 == 0,
  },
}


ADJOINTS = Explicit(), Explicit("recompute"), Explicit(chunk=2)


def gradient(cell, adjoint, options):
  key = jax.random.key(0)
  f = weighed(partial(unroll, cell, adjoint=adjoint, **OPTIONS[options]), key)
  return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments(cell, key))


@cache  # the tests of the adjoints share it
def expected_gradient(cell, options):
  return gradient(cell, Autodiff(), options)


@pytest.mark.everyday(3)
@each_cell(
  ("options", "adjoint"),
  [*product(OPTIONS, ADJOINTS)],
  others=[("masked", Explicit())],
)
def test_the_loop_for_gpus_has_the_gradient_of_autodiff(cell, options, adjoint):
  expected = expected_gradient(cell, options)
  with traced_for("cuda"):
    assert not is_cpu()
    found = gradient(cell, adjoint, options)
  assert is_cpu()
  assert worst(tuple(found), tuple(expected)) < 1e-12


@pytest.mark.everyday(4)
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
  "steps", [1, GPU_STEPS - 1, GPU_STEPS, 2 * GPU_STEPS + 1]
)
def test_both_loops_compute_a_scan(platform, reverse, steps, key):
  """Also of fewer steps than one iteration takes, and of no multiple."""

  def f(scale, carry, row, x):
    h, c = carry
    u, v = jnp.split(
      jnp.sin(scale * row + jnp.concatenate([h, c], -1)), 2, axis=-1
    )
    return (u * x + h, v * c), jnp.concatenate([v, u * x], -1), (h, {"x": x})

  state, rows, xs = normal_like(
    key,
    (
      (np.zeros((B, H)), np.zeros((B, H))),
      np.zeros((steps, B, 2 * H)),
      np.zeros((steps, B, 1)),
    ),
  )

  def body(carry, inputs):
    carry, row, y = f(0.7, carry, *inputs)
    return carry, (row, y)

  last, (rows_after, ys) = lax.scan(body, state, (rows, xs), reverse=reverse)
  with traced_for(platform):
    found = scan_rows(f, 0.7, state, rows, xs, reverse)
  expected = last, rows_after, ys
  assert worst((*found[:2], separate(found[2])), expected) < 1e-12


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_gradient_of_a_gradient_carries_no_sequence(platform, key):
  """Its loops would add an array of all time steps at every step."""
  params, _, xs = arguments(lstm, key)

  def first(params):
    def loss(params):
      return (unroll(lstm, params, None, xs)[1] ** 2).sum()

    return sum(x.sum() for x in jax.grad(loss)(params))

  carried = []

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "scan":
        first = equation.params["num_consts"]
        values = equation.invars[first:][: equation.params["num_carry"]]
        carried.extend(v.aval.shape for v in values)
      for inner in jaxprs_in_params(equation.params):
        visit(inner)

  with traced_for(platform):
    visit(jax.make_jaxpr(jax.grad(first))(params).jaxpr)
  assert (B, H) in carried
  assert not [shape for shape in carried if shape[:1] == (T,)]


def test_the_loop_for_gpus_takes_a_symbolic_t_and_shards_of_a_batch(key):
  params, _, xs = arguments(lstm, key)

  def d_xs(xs):
    return jax.grad(lambda xs: unroll(lstm, params, None, xs)[1].sum())(xs)

  (steps,) = export.symbolic_shape("T")
  mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
  batch = PartitionSpec(None, "data")
  with traced_for("cuda"):
    symbolic = jax.ShapeDtypeStruct((steps, B, D), xs.dtype)
    exported = export.export(jax.jit(d_xs))(symbolic)
    sharded = jax.shard_map(d_xs, mesh=mesh, in_specs=batch, out_specs=batch)
    found = jax.jit(sharded)(xs[:GPU_STEPS])  # all in the loop
  assert worst(found, d_xs(xs[:GPU_STEPS])) < 1e-12
  assert worst(exported.call(xs), d_xs(xs)) < 1e-12


def test_the_loop_for_gpus_takes_mixed_dtypes_and_gives_state_cotangents(key):
  from lstm_jax import gru

  for cell in (lstm, gru):
    params, state, xs = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), arguments(cell, key)
    )
    d_last = normal_like(key, state)
    run = partial(state_cotangents, cell, params, state, xs)
    expected = run(d_last)
    with traced_for("cuda"):
      found = run(d_last)
    for a, b in zip(found, expected, strict=True):
      assert a.dtype == b.dtype
      assert jnp.allclose(a, b, rtol=0.05, atol=0.05)


def test_joined_arrays_are_separated_whole_and_in_part():
  tree = (
    jnp.ones((T, B, H), jnp.float32),
    {"a": jnp.full((T, B, 2), 2.0, jnp.bfloat16), "b": jnp.zeros((T, B, 3))},
    (),
  )
  joined = join(tree)
  assert isinstance(joined, Joined) and len(joined.arrays) == 3
  for found, expected in (
    (separate(joined), tree),
    (separate(joined[1]), tree[1]),
    (separate(joined[0]), tree[0]),
    (separate(joined[2]), tree[2]),
    (separate(tree), tree),
  ):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
      assert a.dtype == b.dtype and (a == b).all()
