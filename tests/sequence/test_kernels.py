"""Kernels in bidirectional stacks, and when they are imported."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import gru, init_stack, rnn, unroll_stack
from tests.draws import B, D, T, normal_like, worst
from tests.interpreting import NEEDS_KERNELS, interpreted
from tests.processes import ROOT

XS = jnp.ones((T, B, D), jnp.float32)


@NEEDS_KERNELS
def test_a_bidirectional_stack_of_kernels_equals_that_of_scans(key):
  cells = gru, rnn
  params = init_stack(cells, key, D, 8, bidirectional=True, dtype=jnp.float32)
  xs = normal_like(key, XS)

  def loss(params, xs, **options):
    last, hs = unroll_stack(
      cells, params, None, xs, lengths=jnp.array([T, 2, 0]), **options
    )
    return sum(map(jnp.vdot, jax.tree.leaves((last, hs)), weighing)), hs

  shapes = jax.eval_shape(partial(unroll_stack, cells, params, None), xs)
  weighing = jax.tree.leaves(normal_like(jax.random.key(1), shapes))
  gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
  expected = gradient(params, xs)
  with interpreted():
    found = gradient(params, xs, implementation="mosaic_gpu")
  # Both are float32, with sums in another order.
  assert worst(found, expected) < 1e-4


IMPORTED = """
import sys
import jax, jax.numpy as jnp
import lstm_jax, lstm_jax.language, lstm_jax.training
params = lstm_jax.lstm.init(jax.random.key(0), 3, 5)
lstm_jax.unroll(lstm_jax.lstm, params, None, jnp.ones((2, 1, 3)))
kernels = "jax.experimental.pallas", "lstm_jax.mosaic_gpu"
print(*sorted(name for name in sys.modules if name.startswith(kernels)))
"""


@pytest.mark.exhaustive
def test_without_kernels_neither_they_nor_pallas_are_imported():
  printed = subprocess.run(
    [sys.executable, "-c", IMPORTED],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  expected = ["lstm_jax.mosaic_gpu", "lstm_jax.mosaic_gpu.limits"]
  assert printed.split() == expected
