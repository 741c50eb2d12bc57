"""Random inputs, and the programs of kernel and scan that take them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.gpu.case import compute_dtype
from experiments.trainer.config import CELLS
from lstm_jax.sequence import unroll

INPUT_SIZE = 40  # D, different from every H that is checked


class Inputs(NamedTuple):
  """What a layer and its gradient depend on."""

  params: Any
  state: Any  # before the first step, [B, H] each
  xs: Any  # [T, B, D]
  mask: Any  # bool [T, B], False at steps that are left out; or None
  reset: Any  # bool [T, B], True at steps that begin with zero state; or None
  d_last: Any  # cotangent of the last state, [B, H] each
  d_hs: Any  # cotangent of the outputs, [T, B, H]


class Outputs(NamedTuple):
  """All that a layer and its gradient compute."""

  last: Any  # the last state, [B, H] each
  hs: Any  # [T, B, H]
  d_params: Any
  d_state: Any
  d_xs: Any  # [T, B, D]


def random_params(
  cell: str, input_size: int, hidden_size: int, rng: np.random.Generator
) -> Any:
  """Return weights and biases, uniform between ±1/√H as PyTorch's are."""
  module = CELLS[cell]
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), input_size, hidden_size, jnp.float32)
  )
  bound = hidden_size**-0.5
  return jax.tree.map(
    lambda x: rng.uniform(-bound, bound, x.shape).astype(np.float32), shapes
  )


def random_inputs(
  cell: str,
  hidden_size: int,
  seq_len: int,
  batch_size: int,
  with_mask_and_reset: bool,
  seed: int,
) -> Inputs:
  """Return random inputs, as NumPy arrays.

  Args:
    cell: lstm, gru or rnn.
    hidden_size: H.
    seq_len: T.
    batch_size: B.
    with_mask_and_reset: whether to leave out 30 % of the steps, and to reset
      the state before 10 %.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.standard_normal(shape, np.float32)

  params = random_params(cell, INPUT_SIZE, hidden_size, rng)
  shapes = jax.eval_shape(
    lambda p: CELLS[cell].initial_state(p, (batch_size,)), params
  )
  steps = seq_len, batch_size
  return Inputs(
    params,
    jax.tree.map(lambda x: normal(*x.shape), shapes),
    normal(*steps, INPUT_SIZE),
    rng.random(steps) < 0.7 if with_mask_and_reset else None,
    rng.random(steps) < 0.1 if with_mask_and_reset else None,
    jax.tree.map(lambda x: normal(*x.shape), shapes),
    normal(*steps, hidden_size),
  )


def layer_program(
  cell: str, dtype: str, reverse: bool, kernel: bool
) -> Callable[[Inputs], Outputs]:
  """Return the program of a layer and all of its gradients.

  In float32 the scan computes products without TF32 (`without_tf32`).
  """
  module = CELLS[cell]

  def program(inputs: Inputs) -> Outputs:
    def layer(params, state, xs):
      return unroll(
        module,
        params,
        state,
        xs,
        mask=inputs.mask,
        reset=inputs.reset,
        reverse=reverse,
        compute_dtype=compute_dtype(dtype),
        implementation="mosaic_gpu" if kernel else None,
      )

    given = inputs.params, inputs.state, inputs.xs
    (last, hs), pull_back = jax.vjp(layer, *given)
    return Outputs(last, hs, *pull_back((inputs.d_last, inputs.d_hs)))

  if kernel:
    return program
  return without_tf32(program)


def without_tf32(f: Callable) -> Callable:
  """Return f with float32 products computed in float32.

  On a GPU, JAX's default is TF32, which has 10 bits of mantissa.
  """

  def in_float32(*args):
    with jax.default_matmul_precision("highest"):
      return f(*args)

  return in_float32
