"""The loops over time that are traced for CPUs and GPUs, run on the CPU."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

from lstm_jax import Autodiff, Explicit, gru, lstm, slstm, unroll
from lstm_jax.cells.platform import is_cpu, traced_for
from lstm_jax.sequence import in_place, state_cotangents
from lstm_jax.sequence.in_place import GPU_STEPS, scan_in_place
from lstm_jax.sequence.joined import Joined, join, separate
from tests.contract import each_cell
from tests.draws import B, D, H, T, arguments, normal_like, weighed, worst
from tests.gradients import value_and_gradient
from tests.sequence.options import OPTIONS

ADJOINTS = Explicit(), Explicit("recompute"), Explicit(chunk=2)


@pytest.mark.everyday(1)
@each_cell(
  ("options", "adjoint"),
  [*product(OPTIONS, ADJOINTS)],
  others=[("masked", Explicit())],
)
def test_the_loop_for_gpus_has_the_gradient_of_autodiff(
  cell, options, adjoint, key, monkeypatch, traced_anew
):
  monkeypatch.setattr(in_place, "GPU_STEPS", 2)  # so that T is 1 + 2 · 2
  args, options = arguments(cell, key), OPTIONS[options]
  expected = value_and_gradient(cell, args, adjoint=Autodiff(), **options)
  f = weighed(partial(unroll, cell, adjoint=adjoint, **options), key)
  with traced_for("cuda"):
    assert not is_cpu()
    found = jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*args)
  assert is_cpu()
  assert worst(tuple(found), tuple(expected)) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.parametrize("steps", [GPU_STEPS + 2, 2 * GPU_STEPS + 1])
@pytest.mark.parametrize("cell", [gru, lstm, slstm])
def test_steps_that_are_no_multiple_have_the_gradient_of_autodiff(
  cell, steps, key
):
  """XLA compiled a wrong slstm where a rest of steps preceded one iteration."""
  args = arguments(cell, key, steps=steps)
  expected = value_and_gradient(cell, args, adjoint=Autodiff())
  with traced_for("cuda"):
    found = value_and_gradient(cell, args)
  assert worst(tuple(found), tuple(expected)) < 1e-12


def plain_scan(f, operands, carry, zs, xs, reverse):
  """Do what `scan_in_place` does, with `lax.scan` and JAX's own derivatives."""

  def body(carry, inputs):
    carry, z, y = f(operands, carry, *inputs)
    return carry, (z, y)

  carry, (zs, ys) = lax.scan(body, carry, (zs, xs), reverse=reverse)
  return carry, zs, ys


@pytest.mark.everyday(2)
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
  "steps", [1, GPU_STEPS - 1, GPU_STEPS, 2 * GPU_STEPS + 1]
)
def test_both_loops_compute_a_scan(platform, reverse, steps, key):
  """Also where the steps are fewer than one iteration takes, or no multiple."""

  def f(scale, carry, z, x):
    h, c = carry
    u, v = jnp.split(
      jnp.sin(scale * z + jnp.concatenate([h, c], -1)), 2, axis=-1
    )
    y = h, {"x": x, "sum": h.sum()}
    return (u * x + h, v * c), jnp.concatenate([v, u * x], -1), y

  state, zs, xs = normal_like(
    key,
    (
      (np.zeros((B, H)), np.zeros((B, H))),
      np.zeros((steps, B, 2 * H)),
      np.zeros((steps, B, 1)),
    ),
  )

  def run(scan):
    program = jax.jit(partial(scan, f, 0.7, reverse=reverse))
    last, after, ys = program(state, zs, xs)
    return last, after, separate(ys)

  expected = run(plain_scan)
  with traced_for(platform):
    found = run(scan_in_place)
  assert worst(found, expected) < 1e-12


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("steps", [2, 2 * GPU_STEPS + 1])
def test_zs_keep_their_dtype(platform, steps, key):
  """Also beside a state of a wider dtype, and in the derivative."""
  state, zs = normal_like(
    key, (np.zeros((B, H)), np.zeros((steps, B, H), np.float32))
  )

  def f(_, carry, z, x):
    carry = carry + z.astype(carry.dtype)
    return carry, jnp.sin(carry), ()

  def run(zs):
    return scan_in_place(f, (), state, zs, None, False)[1]

  with traced_for(platform):
    after, tangents = jax.jvp(run, (zs,), (zs,))
  assert after.dtype == tangents.dtype == jnp.float32
  sums = np.cumsum(np.asarray(zs), axis=0, dtype=float)
  states = np.asarray(state) + sums
  assert worst(after, np.float32(np.sin(states))) < 1e-6
  assert worst(tangents, np.float32(np.cos(states) * sums)) < 1e-6


def total(scan, zs):
  """Return a scalar of what a function like `scan_in_place` returns."""

  def step(scale, carry, z, flag):
    carry = jnp.where(flag, jnp.sin(scale * z + carry), carry)
    return carry, carry * z, (carry, {"x": jnp.cos(z)})

  flags = jnp.arange(len(zs)) % 2 == 0
  last, zs, ys = scan(step, 0.7, zs[0], zs, flags, False)
  ys = separate(ys)
  return (last**2).sum() + (zs**3).sum() + (ys[0] * ys[1]["x"]).sum()


def squared(gradient):
  return lambda zs: (gradient(zs) ** 2).sum()


DERIVATIVES = {  # of f of zs [T, 2], for a batch of zs [N, T, 2]
  "hessian": lambda f: jax.vmap(jax.hessian(f)),
  "hessian_of_vmap": lambda f: jax.hessian(lambda x: jax.vmap(f)(x).sum()),
  "forward_twice": lambda f: jax.vmap(jax.jacfwd(jax.jacfwd(f))),
  "reverse_twice": lambda f: jax.jacrev(jax.vmap(jax.grad(f))),
  "third_order": lambda f: jax.vmap(
    jax.grad(squared(jax.grad(squared(jax.grad(f)))))
  ),
  "checkpoint": lambda f: jax.vmap(
    jax.grad(squared(jax.grad(jax.checkpoint(f))))
  ),
}


@cache  # the tests of both platforms share it
def derivative_of_a_scan(derivative, zs_shape):
  zs = normal_like(jax.random.key(0), np.zeros(zs_shape))
  return zs, jax.jit(DERIVATIVES[derivative](partial(total, plain_scan)))(zs)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("steps", [2, 2 * GPU_STEPS + 1])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_equal_those_of_a_scan(platform, steps, derivative):
  """Also where the function is compiled before it is differentiated."""

  def in_place(zs):  # another function for each platform: JAX traces it anew
    return total(scan_in_place, zs)

  zs, expected = derivative_of_a_scan(derivative, (3, steps, 2))
  with traced_for(platform):
    for f in (in_place, jax.jit(in_place)):
      found = jax.jit(DERIVATIVES[derivative](f))(zs)
      assert worst(found, expected) < 1e-12 * max(1, abs(expected).max())


def test_an_error_ends_tracing_for_a_gpu():
  with pytest.raises(KeyError), traced_for("cuda"):
    raise KeyError
  assert is_cpu()


@pytest.mark.exhaustive
def test_a_program_for_a_gpu_may_be_differentiated_later(key):
  """Outside of the context in which it was traced."""
  params, _, xs = arguments(lstm, key)

  def loss(params):
    return (unroll(lstm, params, None, xs)[1] ** 2).sum()

  def second(gradient):
    def total(params):
      return sum((x**2).sum() for x in gradient(params))

    return jax.grad(total)(params)

  gradient = jax.jit(jax.grad(loss))
  with traced_for("cuda"):
    gradient(params)
  expected = second(jax.grad(loss))
  assert worst(second(gradient), expected) < 1e-12 * abs(expected.w_h).max()


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_gradient_of_a_gradient_adds_no_sequences_in_a_loop(platform, key):
  """To add an array of all T time steps at every step would take time as T²."""
  steps = 2 * GPU_STEPS + 1
  params, _, xs = arguments(lstm, key, steps=steps)

  def first(params):
    def loss(params):
      return (unroll(lstm, params, None, xs)[1] ** 2).sum()

    return sum(x.sum() for x in jax.grad(loss)(params))

  found = set()  # what makes an array of T rows in a loop

  def visit(jaxpr, inside):
    for equation in jaxpr.eqns:
      inner = [*jaxprs_in_params(equation.params)]
      shapes = [v.aval.shape[:1] for v in equation.outvars]
      if inside and not inner and (steps,) in shapes:
        found.add(equation.primitive.name)
      for jaxpr in inner:
        visit(jaxpr, inside or equation.primitive.name == "scan")

  with traced_for(platform):
    visit(jax.make_jaxpr(jax.grad(first))(params).jaxpr, False)
  assert found == {"dynamic_update_slice"}


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_the_loop_for_gpus_takes_bfloat16_and_gives_state_cotangents(key):
  """The state is bfloat16, and the gates are float32."""
  for cell in (lstm, gru):
    params, state, xs = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), arguments(cell, key)
    )
    d_last = normal_like(jax.random.key(1), state)
    run = partial(state_cotangents, cell, params, state, xs)
    expected = run(d_last)
    with traced_for("cuda"):
      found = run(d_last)
    for a, b in zip(found, expected, strict=True):
      assert a.dtype == b.dtype
      assert jnp.allclose(a, b, rtol=2**-7, atol=1e-3)  # one bit of bfloat16


def test_joined_arrays_are_separated_whole_and_in_part():
  tree = (
    jnp.ones((T, B, H), jnp.float32),
    {"a": jnp.full((T, B, 2), 2.0, jnp.bfloat16), "b": jnp.zeros((T, B, 3))},
    (),
    (jnp.arange(3.0), jnp.array(4.0)),  # without a batch
  )
  joined = join(tree)
  # One array for each dtype and leading axes: the last two leaves share one.
  assert isinstance(joined, Joined) and len(joined.arrays) == 4
  for found, expected in (
    (separate(joined), tree),
    (separate(joined[1]), tree[1]),
    (separate(joined[0]), tree[0]),
    (separate(joined[2]), tree[2]),
    (separate(joined[3]), tree[3]),
    (separate(tree), tree),
  ):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
      assert (a.dtype, a.shape) == (b.dtype, b.shape) and (a == b).all()
