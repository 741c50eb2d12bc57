"""One layer over a sequence: its outputs, or all of its gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers.layers import LAYERS, Layer, ours, torch_layer
from experiments.benchmarks.peers.proof import TOLERANCE, Peer, agree, compiled
from experiments.trainer.config import CELLS


class Problem(NamedTuple):
  """One layer, its inputs, and what everyone must compute.

  The inputs have the layer's own size, D = H, as those of a deep network's
  middle layer do. The gradient is that of Σ hs ⊙ dhs in weights and inputs.
  """

  cell: str
  backward: bool  # time the gradients, or the outputs alone
  weights: Any
  xs: jax.Array  # [T, B, H]
  dhs: jax.Array  # [T, B, H]
  hs: jax.Array  # [T, B, H]
  gradient: tuple[Any, jax.Array]


def make_problem(
  cell: str, backward: bool, hidden: int, steps: int, batch: int
) -> Problem:
  """Return a layer of those sizes on random inputs."""
  keys = jax.random.split(jax.random.key(0), 4)
  weights = CELLS[cell].init(keys[0], hidden, hidden)
  noise = 0.1 * jax.random.normal(keys[1], weights.b.shape, jnp.float32)
  weights = weights._replace(b=weights.b + noise)
  shape = steps, batch, hidden
  xs, dhs = (jax.random.normal(k, shape, jnp.float32) for k in keys[2:])
  return solved(ours(cell, weights), cell, backward, weights, xs, dhs)


def solved(
  layer: Layer,
  cell: str,
  backward: bool,
  weights: Any,
  xs: jax.Array,
  dhs: jax.Array,
) -> Problem:
  """Return the problem whose outputs and gradients are those of a layer."""
  hs = jax.jit(layer.apply)(weights, xs)
  gradient = jax.jit(_gradient(layer))(weights, xs, dhs)
  return Problem(cell, backward, weights, xs, dhs, hs, gradient)


def _gradient(layer: Layer) -> Callable:
  def weighed(params, xs, dhs):
    return jnp.sum(layer.apply(params, xs) * dhs)

  return jax.grad(weighed, (0, 1))


def jax_peer(name: str) -> Callable[[Problem], Peer]:
  """Return the layer of a JAX library, compiled."""

  def make(problem: Problem) -> Peer:
    layer = LAYERS[name][0](problem.cell, problem.weights)
    return peer_of(name, layer, problem)

  return make


def peer_of(name: str, layer: Layer, problem: Problem) -> Peer:
  """Return a layer compiled, after comparing what it computes."""
  f: Callable = layer.apply
  arguments, expected = [layer.params, problem.xs], [problem.hs]
  if problem.backward:
    f = _gradient(layer)
    d_weights, dxs = problem.gradient
    arguments.append(problem.dhs)
    expected = [layer.port(d_weights), dxs]
  program, seconds, size = compiled(f, *arguments)
  agree(name, program(*arguments), expected, TOLERANCE)
  return Peer(lambda: jax.block_until_ready(program(*arguments)), seconds, size)


def pytorch(problem: Problem) -> Peer:
  """PyTorch's layer: eager, under no_grad where only outputs are wanted."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  layer = torch_layer(problem.cell, (problem.weights,), device)
  xs, dhs = (
    torch.tensor(np.array(x), device=device) for x in (problem.xs, problem.dhs)
  )
  if not problem.backward:

    def forward():
      with torch.no_grad():
        hs = layer(xs)[0]
      _wait(hs)
      return hs

    agree("pytorch", [forward().cpu().numpy()], [problem.hs], TOLERANCE)
    return Peer(forward)

  xs.requires_grad_(True)
  names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
  leaves = [getattr(layer, name) for name in names]

  def backward():
    gradients = torch.autograd.grad(layer(xs)[0], [xs, *leaves], dhs)
    _wait(gradients[0])
    return gradients

  dx, dw_x, dw_h, db, db_h = (g.cpu().numpy() for g in backward())
  found = [dw_x.T, dw_h.T, db]
  if problem.cell == "gru":
    found.append(db_h[-problem.weights.b_n.shape[0] :])
  agree("pytorch", [found, dx], problem.gradient, TOLERANCE)
  return Peer(backward)


def _wait(tensor: Any) -> None:
  if tensor.is_cuda:
    import torch

    torch.cuda.synchronize()


def sequences() -> dict[str, tuple[Callable[[Problem], Peer], str]]:
  """Return every layer and the package it needs, ours first."""
  own: dict[str, tuple[Callable[[Problem], Peer], str]] = {
    name: (jax_peer(name), package) for name, (_, package) in LAYERS.items()
  }
  own["pytorch"] = pytorch, "torch"
  return own
