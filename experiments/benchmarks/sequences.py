"""One recurrent layer over a sequence: its outputs, or all its gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.layers import LAYERS, Layer, ours
from experiments.benchmarks.proof import (
  Makers,
  Peer,
  check_same,
  compile_program,
  tolerance,
)
from experiments.benchmarks.torch_layer import as_tensor, torch_layer
from experiments.trainer.config import CELLS


class Problem(NamedTuple):
  """A layer, its inputs, and the expected outputs and gradients.

  The inputs have the layer's hidden size, D = H, as in the middle of a stack.
  The gradient is that of Σ hs ⊙ dhs with respect to weights and inputs.
  """

  cell: str
  backward: bool  # time all gradients; if False, the outputs alone
  weights: Any
  xs: jax.Array  # [T, B, H]
  dhs: jax.Array  # [T, B, H]
  hs: jax.Array  # [T, B, H]
  gradient: tuple[Any, jax.Array]  # of weights and xs


def make_problem(
  cell: str, backward: bool, hidden_size: int, seq_len: int, batch_size: int
) -> Problem:
  """Return the problem of these sizes, with random inputs and our results."""
  sizes = hidden_size, seq_len, batch_size
  weights, xs, dhs = draw_layer(cell, *sizes)
  return with_expected(ours(cell, weights), cell, backward, weights, xs, dhs)


def draw_layer(
  cell: str, hidden_size: int, seq_len: int, batch_size: int
) -> tuple[Any, jax.Array, jax.Array]:
  """Return the weights, inputs and cotangents (weights, xs, dhs) of a layer.

  b is random, so that a peer with the gates of b in another order is found. The
  b_n of a GRU stays 0, because Flax's nnx cell has none.
  """
  keys = jax.random.split(jax.random.key(0), 4)
  weights = CELLS[cell].init(keys[0], hidden_size, hidden_size)
  noise = 0.1 * jax.random.normal(keys[1], weights.b.shape, jnp.float32)
  weights = weights._replace(b=weights.b + noise)
  shape = seq_len, batch_size, hidden_size
  xs, dhs = (jax.random.normal(k, shape, jnp.float32) for k in keys[2:])
  return weights, xs, dhs


def with_expected(
  layer: Layer,
  cell: str,
  backward: bool,
  weights: Any,
  xs: jax.Array,
  dhs: jax.Array,
) -> Problem:
  """Return the problem whose expected results are those of `layer`."""
  hs = jax.jit(layer.apply)(weights, xs)
  gradient = jax.jit(layer_gradient(layer))(weights, xs, dhs)
  return Problem(cell, backward, weights, xs, dhs, hs, gradient)


def layer_gradient(layer: Layer) -> Callable:
  """Return (params, xs, dhs) -> (d_params, dxs), gradients of Σ hs ⊙ dhs."""

  def weighted_sum(params, xs, dhs):
    return jnp.sum(layer.apply(params, xs) * dhs)

  return jax.grad(weighted_sum, (0, 1))


def jax_peer(
  name: str, make_layer: Callable[[str, Any], Layer]
) -> Callable[[Problem], Peer]:
  """Return the function (problem) -> the peer of a JAX library's layer.

  Args:
    name: of the peer.
    make_layer: (cell, weights) -> the library's layer.
  """

  def make(problem: Problem) -> Peer:
    layer = make_layer(problem.cell, problem.weights)
    return make_peer(name, layer, problem)

  return make


def make_peer(name: str, layer: Layer, problem: Problem) -> Peer:
  """Compile a layer, check its results, and return it as a peer."""
  f: Callable = layer.apply
  arguments, expected = [layer.params, problem.xs], [problem.hs]
  if problem.backward:
    f = layer_gradient(layer)
    d_weights, dxs = problem.gradient
    arguments.append(problem.dhs)
    expected = [layer.convert(d_weights), dxs]
  program, seconds, size = compile_program(f, *arguments)
  check_same(name, program(*arguments), expected, tolerance())
  return Peer(lambda: jax.block_until_ready(program(*arguments)), seconds, size)


def pytorch(problem: Problem) -> Peer:
  """Return the peer of PyTorch's layer, run eagerly.

  If only outputs are timed, it runs under no_grad.
  """
  import torch

  layer = torch_layer(problem.cell, (problem.weights,))
  xs, dhs = as_tensor(problem.xs), as_tensor(problem.dhs)
  if not problem.backward:

    def forward():
      with torch.no_grad():
        hs = layer(xs)[0]
      _synchronize(hs)
      return hs

    check_same("pytorch", [forward().cpu().numpy()], [problem.hs], tolerance())
    return Peer(forward)

  xs.requires_grad_(True)
  names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
  leaves = [getattr(layer, name) for name in names]

  def backward():
    gradients = torch.autograd.grad(layer(xs)[0], [xs, *leaves], dhs)
    _synchronize(gradients[0])
    return gradients

  dx, dw_x, dw_h, db, db_h = (g.cpu().numpy() for g in backward())
  d_weights = [dw_x.T, dw_h.T, db]
  # Our cells have one bias, and a GRU also b_n, the end of PyTorch's second.
  if problem.cell == "gru":
    d_weights.append(db_h[-problem.weights.b_n.shape[0] :])
  check_same("pytorch", [d_weights, dx], problem.gradient, tolerance())
  return Peer(backward)


def _synchronize(tensor: Any) -> None:
  if tensor.is_cuda:
    import torch

    torch.cuda.synchronize()


def jax_peers() -> Makers:
  """Return the makers of the JAX layers: ours, autodiff, other libraries'."""
  return {
    name: (jax_peer(name, make), package)
    for name, (make, package) in LAYERS.items()
  }


def sequences() -> Makers:
  """Return the makers of all layers."""
  return {**jax_peers(), "pytorch": (pytorch, "torch")}
