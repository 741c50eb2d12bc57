"""Random inputs, and the programs of kernel and scan that get them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.gpu.case import compute_dtype
from experiments.trainer.config import CELLS
from lstm_jax.sequence import unroll

INPUT_SIZE = 40  # D, no multiple of anything the kernels divide by


class Inputs(NamedTuple):
  """What a layer and its gradient depend on."""

  params: Any
  state: Any  # before the first step, [B, H] each
  xs: Any  # [T, B, D]
  mask: Any  # bool [T, B], or None
  reset: Any  # bool [T, B], or None
  d_last: Any  # cotangent of the last state
  d_hs: Any  # cotangent of the outputs, [T, B, H]


class Outputs(NamedTuple):
  """All that a layer and its gradient compute."""

  last: Any
  hs: Any
  d_params: Any
  d_state: Any
  d_xs: Any


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
  flags: bool,
  seed: int,
) -> Inputs:
  """Return random inputs, as NumPy arrays.

  Args:
    cell: lstm, gru or rnn.
    hidden_size: H.
    seq_len: T.
    batch_size: B.
    flags: whether 30 % of the steps are masked and 10 % reset.
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
    rng.random(steps) < 0.7 if flags else None,
    rng.random(steps) < 0.1 if flags else None,
    jax.tree.map(lambda x: normal(*x.shape), shapes),
    normal(*steps, hidden_size),
  )


def layer_program(
  cell: str, dtype: str, reverse: bool, kernel: bool
) -> Callable[[Inputs], Outputs]:
  """Return the program of a layer and all of its gradients.

  The scan's products are exact where the operands are float32, and not in TF32
  as they would be by default.
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
  return exact(program)


def exact(f: Callable) -> Callable:
  """Return f with float32 products in float32."""

  def with_exact_products(*args):
    with jax.default_matmul_precision("highest"):
      return f(*args)

  return with_exact_products
