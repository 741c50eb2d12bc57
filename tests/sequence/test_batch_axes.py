"""`grad` of `vmap`, whichever array is mapped: as JAX's own gradient."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, lstm, min_gru, slstm, unroll
from tests.draws import arguments, normal_like, weighed, worst

ADJOINTS = (Explicit(), Explicit(chunk=2), Explicit("recompute", 2))


def mapped_arrays(cell, key, steps, batch):
  """Yield (what is mapped, the gradient of `vmap` over it, its arguments).

  Of the state and of the weights, one array is mapped alone. There are as many
  mapped values as rows of the batch, and of time steps where both are 4, so
  that exchanged axes do not change the shapes.
  """
  params, state, xs = arguments(cell, key, steps=steps, batch=(batch,))
  mask = jax.random.bernoulli(key, 0.7, (steps, batch))
  given = {"params": params, "state": state, "xs": xs, "mask": mask}
  fields = [("xs", None), ("mask", None), ("params", "w_x")]
  fields += [("state", field) for field in state._fields]
  for name, field in fields:
    old = given[name] if field is None else getattr(given[name], field)
    if name == "mask":
      values = jax.random.bernoulli(key, 0.5, (batch, *mask.shape))
    else:
      factors = jax.random.uniform(key, (batch, *old.shape), old.dtype, 0.5, 1)
      values = old[None] * factors

    def gradient(adjoint, name=name, field=field, values=values):
      def one(params, state, xs, value):
        a = {"params": params, "state": state, "xs": xs, "mask": mask}
        whole = value if field is None else a[name]._replace(**{field: value})
        a |= {name: whole}
        return unroll(
          cell,
          a["params"],
          a["state"],
          a["xs"],
          mask=a["mask"],
          adjoint=adjoint,
        )

      def all_of_them(params, state, xs):
        return jax.vmap(lambda v: one(params, state, xs, v))(values)

      return jax.grad(weighed(all_of_them, key), (0, 1, 2))

    yield f"{name} {field}", gradient, (params, state, xs)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
@pytest.mark.parametrize("cell", [lstm, min_gru], ids=["lstm", "min_gru"])
def test_grad_of_vmap_over_chunks_equals_autodiff(cell, adjoint, key):
  for what, gradient, args in mapped_arrays(cell, key, 4, 4):
    expected = jax.jit(gradient(Autodiff()))(*args)
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    found = jax.jit(gradient(adjoint))(*args)
    assert worst(found, expected) < 1e-12 * max(size, 1), what


@pytest.mark.everyday(1)
@pytest.mark.parametrize("adjoint", ADJOINTS[:2], ids=str)
@pytest.mark.parametrize("cell", [lstm, slstm], ids=["lstm", "slstm"])
def test_derivatives_of_grad_of_vmap_equal_autodiff(cell, adjoint, key):
  """With one time step, what is not mapped stays so in some of the results."""
  for what, gradient, args in mapped_arrays(cell, key, 1, 2):
    if not what.startswith("state"):
      continue
    tangents = normal_like(key, args)

    def second(adjoint, gradient=gradient, args=args, tangents=tangents):
      first = gradient(adjoint)
      reverse = jax.grad(weighed(first, key), (0, 1, 2))
      return jax.jit(
        lambda *args: (jax.jvp(first, args, tangents)[1], reverse(*args))
      )(*args)

    expected, found = second(Autodiff()), second(adjoint)
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert worst(found, expected) < 1e-12 * max(size, 1), what
