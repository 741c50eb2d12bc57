"""Run Flax's RNN and ours on the same weights, inputs and cotangents."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lstm_jax.interop.flax import NNXRNN, LinenRNN, modules
from tests.draws import B, D, H, T, normal_like, weighed, worst

NAMES = "LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"
EACH_CELL = pytest.mark.parametrize("name", NAMES)
LINEN64 = {"param_dtype": jnp.float64}
NNX64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def linen_cell(name, **fields):
  """Return a linen cell, whose weights are float64 by default."""
  return getattr(linen, name)(H, **{**LINEN64, **fields})


def nnx_cell(name, **options):
  """Return an nnx cell, which is float64 by default."""
  return getattr(nnx, name)(D, H, rngs=nnx.Rngs(0), **{**NNX64, **options})


def inputs(key, dtype=jnp.float64):
  """Return inputs [B, T, D]: Gaussian, or integers in [-8, 8], or bool."""
  xs = normal_like(key, np.zeros((B, T, D)))
  if dtype is bool:
    return xs > 0
  xs = xs if jnp.issubdtype(dtype, jnp.floating) else (4 * xs).clip(-8, 8)
  return xs.astype(dtype)


def count_unrolls(monkeypatch):
  """Return a list that grows with every call of `unroll` by our modules."""
  calls = []
  unroll = modules.unroll

  def counted(*args, **kwargs):
    calls.append(args)
    return unroll(*args, **kwargs)

  monkeypatch.setattr(modules, "unroll", counted)
  return calls


def linen_difference(cell, xs, key, call=None, **fields):
  """Return the largest difference of values and gradients, ours to Flax's.

  Args:
    cell: a linen cell.
    xs: inputs [B, T, D].
    key: draws the weights and the cotangents.
    call: further arguments of the call.
    fields: further fields of the RNN.
  """
  call = call or {}
  theirs, ours = (
    kind(cell, return_carry=True, **fields) for kind in (linen.RNN, LinenRNN)
  )
  variables = jax.eval_shape(theirs.init, key, xs)
  assert jax.eval_shape(ours.init, key, xs) == variables
  variables = normal_like(key, variables)

  def run(module):
    f = weighed(lambda *args: module.apply(*args, **call), key)
    return value_and_grad(f, variables, xs)

  return worst(run(ours), run(theirs))


def nnx_difference(cell, xs, key, call=None, **options):
  """Return what `linen_difference` returns, for an nnx cell.

  Args:
    cell: an nnx cell.
    xs: inputs [B, T, D].
    key: draws the weights and the cotangents.
    call: a function that returns further arguments of the call.
    options: further arguments of the RNN.
  """

  def run(kind):
    module = kind(cell, return_carry=True, **copy.deepcopy(options))
    graph, params, others = nnx.split(module, nnx.Param, ...)

    def f(params, xs):
      # A copy: a traced function may not change the random keys outside it.
      merged = nnx.merge(graph, params, jax.tree.map(lambda x: x, others))
      return merged(xs, **(call() if call else {}))

    params = normal_like(key, params)
    value, gradient = value_and_grad(weighed(f, key), params, xs)
    return value, jax.tree.leaves(gradient)

  return worst(run(NNXRNN), run(nnx.RNN))


def value_and_grad(f, weights, xs):
  """Return f's value and its gradients by weights and by xs.

  The gradient by xs is left out if xs are not float64: it is rounded for other
  floats, and undefined for integers.
  """
  wrt = (0, 1) if xs.dtype == jnp.float64 else (0,)
  return jax.jit(jax.value_and_grad(f, wrt))(weights, xs)
