"""A call within `jit`, which JAX may map or check later, as a whole program."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from lstm_jax import gru, lstm, unroll
from lstm_jax.cells.platform import traced_for
from tests.draws import arguments, worst

V = 7  # how many rows `vmap` maps


def test_a_mapped_program_has_the_precision_that_it_was_traced_with(key):
  params, state, xs = arguments(lstm, key, batch=(V,))

  @jax.jit
  def outputs(x):
    with jax.default_matmul_precision("high"):  # "highest" in conftest.py
      return unroll(lstm, params, None, x)[1]

  @jax.jit
  def gradient(d_hs):  # mapped over d_hs alone, as in `jacrev`
    with jax.default_matmul_precision("high"):
      return jax.vjp(lambda s: unroll(lstm, params, s, xs)[1], state)[1](d_hs)

  d_hs = jnp.ones((3, *xs.shape[:-1], state.h.shape[-1]))
  for mapped, inputs in (
    (jax.vmap(outputs, 1), xs),
    (jax.vmap(gradient), d_hs),
  ):
    text = jax.jit(mapped).lower(inputs).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("[HIGH, HIGH]" in line for line in products)


def test_a_mapped_program_is_for_the_device_that_it_was_traced_for(key):
  params, _, xs = arguments(lstm, key, batch=(V,))

  @jax.jit
  def outputs(x):
    with traced_for("cuda"):
      return unroll(lstm, params, None, x)[1]

  on_cpu = partial(unroll, lstm, params, None)
  texts = [
    jax.jit(jax.vmap(f, 1)).lower(xs).as_text() for f in (on_cpu, outputs)
  ]
  # Of outputs alone, only a program for a CPU has barriers, against fusion.
  assert ["optimization_barrier" in text for text in texts] == [True, False]


@pytest.mark.parametrize("cell", [gru, lstm])
def test_checkify_finds_a_nan_in_a_sequence(cell, key):
  params, state, xs = arguments(cell, key)
  checked = checkify.checkify(
    jax.jit(partial(unroll, cell)), errors=checkify.float_checks
  )
  error, outputs = checked(params, state, xs)
  assert error.get() is None
  assert worst(outputs, unroll(cell, params, state, xs)) < 1e-12
  assert "nan" in checked(params, state, xs.at[1].set(jnp.nan))[0].get()
