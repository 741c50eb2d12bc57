"""What the kernels ask of the compiler, and where they wait, as traced.

No value shows them: the interpreter computes tanh exactly and products at once,
and an array rounded to 16 bits stays within the tolerance of bfloat16.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import rnn, unroll
from tests.interpreting import NEEDS_KERNELS, interpreted
from tests.mosaic_gpu.layers import ALL_CELLS, CELLS, DTYPES, draw

pytestmark = NEEDS_KERNELS

# Saved for each unit of each sequence at each time step, with products in
# bfloat16 and in float32: docs/gpu.md, "Memory".
SAVED = {
  "lstm": (["float16"] * 4 + ["float32"], ["float32"] * 5),
  "gru": (["float16"] * 5, ["float32"] * 5),
  "rnn": (["float16"], ["float32"]),
}


def trace(name, hidden, dtype):
  """Trace the forward and the backward kernel of a layer; run nothing."""
  run = partial(
    unroll, CELLS[name], implementation="mosaic_gpu", compute_dtype=dtype
  )

  def gradient(*arguments):
    outputs, backward = jax.vjp(run, *arguments)
    return backward(outputs)

  with interpreted():
    jax.eval_shape(gradient, *draw(CELLS[name], hidden=hidden))


def dtypes(tree):
  return [leaf.dtype.name for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def plgpu():
  from jax.experimental.pallas import mosaic_gpu

  return mosaic_gpu


@ALL_CELLS
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_bfloat16_takes_the_inexact_tanh_and_16_bits(
  name, dtype, monkeypatch, plgpu
):
  kernels, original = [], plgpu.kernel

  def kernel(body, **options):
    kernels.append(options)
    return original(body, **options)

  monkeypatch.setattr(plgpu, "kernel", kernel)
  trace(name, 40, dtype)
  approximate = [k["compiler_params"].approx_math for k in kernels]
  # The first is the forward without a gradient, of which JAX takes the shapes.
  assert approximate == [dtype == jnp.bfloat16] * 3
  _, forward, backward = (k["out_type"] for k in kernels)
  hs, last, saved, _ = forward
  das, first = backward
  assert {*dtypes(hs), *dtypes(last), *dtypes(first)} == {"float32"}
  assert dtypes(saved) == SAVED[name][DTYPES.index(dtype)]
  assert dtypes(das) == [jnp.dtype(dtype).name]


# By H: forward and backward, of one thread block and of a cluster. At a barrier
# a kernel waits for the weights, for units that were sent, or in a cluster for
# the copies of these.
WAITS = {
  40: (
    "barrier_wait barrier_wait wgmma wgmma_wait barrier_wait",
    "barrier_wait wait_smem_to_gmem barrier_wait wgmma wgmma_wait "
    "wait_smem_to_gmem",
  ),
  256: (
    "wait_smem_to_gmem barrier_wait barrier_wait barrier_wait wgmma wgmma_wait "
    "wait_smem_to_gmem barrier_wait barrier_wait",
    "barrier_wait wait_smem_to_gmem barrier_wait barrier_wait wgmma wgmma_wait "
    "wait_smem_to_gmem",
  ),
}


@pytest.mark.parametrize("hidden", WAITS)
def test_a_product_waits_for_its_operands_and_is_waited_for(
  hidden, monkeypatch, plgpu
):
  kernels = []

  def recorded(name):
    original = getattr(plgpu, name)

    def call(*args, **options):
      if name == "kernel":
        kernels.append([])
      else:
        kernels[-1].append(name)
      return original(*args, **options)

    return call

  for name in ("kernel", *{n for w in WAITS[hidden] for n in w.split()}):
    monkeypatch.setattr(plgpu, name, recorded(name))
  trace("rnn", hidden, jnp.float32)
  _, forward, backward = (" ".join(names) for names in kernels)
  assert (forward, backward) == WAITS[hidden]


def test_blocks_of_a_cluster_send_through_two_buffers_in_turns(monkeypatch):
  """A block may still read h of the last time step when another sends h."""
  from lstm_jax.mosaic_gpu import forward

  def fori_loop(start, end, body, carry):
    for k in range(start, end):  # the number of a buffer is then no tracer
      carry = body(k, carry)
    return carry

  buffers, launch = [], forward.launch

  class Memory:
    def __init__(self, ref):
      self.ref, self.at = ref, self

    def __getitem__(self, place):
      buffers.append(place[0])
      return self.ref.at[place]

  def recorded(kernel, *arguments):
    def body(*refs, **scratch):
      *others, memory = refs
      kernel(*others, Memory(memory), **scratch)

    return launch(body, *arguments)

  monkeypatch.setattr(forward, "lax", SimpleNamespace(fori_loop=fori_loop))
  monkeypatch.setattr(forward, "launch", recorded)
  params = rnn.init(jax.random.key(0), 2, 256)
  run = partial(unroll, rnn, implementation="mosaic_gpu")
  with interpreted():
    jax.eval_shape(run, params, None, jnp.ones((3, 1, 2), jnp.float32))
  assert buffers == [0, 0, 1, 1, 0, 0, 1, 1]  # to send, and to receive
