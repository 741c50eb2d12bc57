"""A language model's training step, with each library's recurrent layers.

A whole Adam update of embedding, layers, readout and cross-entropy, compiled,
its state kept between calls and donated. Where a library's users would write
the same embedding and readout in any library, they are written once, here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.peers.layers import LAYERS, torch_layer
from experiments.benchmarks.peers.proof import (
  TOLERANCE,
  Missing,
  Peer,
  agree,
  compiled,
)
from lstm_jax.cells.affine import product_transposed
from lstm_jax.language import LanguageParams, ModelConfig, language_model
from lstm_jax.sequence._unroll import Rule

LEARNING_RATE = 1e-3
LOW_TOLERANCE = 5e-2  # of bfloat16 products


class Problem(NamedTuple):
  """One language-model step, and what everyone must compute at first."""

  config: ModelConfig
  params: LanguageParams
  tokens: np.ndarray  # [T, B]
  targets: np.ndarray  # [T, B]
  loss: float
  gradient: LanguageParams


def make_problem(
  hidden: int,
  steps: int,
  batch: int,
  layers: int,
  vocabulary: int,
  dtype: str = "float32",
) -> Problem:
  """Return a language-model step of those sizes on random tokens."""
  exact = ModelConfig(
    vocabulary_size=vocabulary, hidden_size=hidden, num_layers=layers
  )
  config = exact
  if dtype != "float32":
    config = replace(exact, compute_dtype=jnp.dtype(dtype))
  params = language_model(exact).init(jax.random.key(0))
  draw = np.random.default_rng(0)
  text = draw.integers(0, vocabulary, (steps + 1, batch)).astype(np.int32)
  tokens, targets = text[:-1], text[1:]
  reference = jax.jit(jax.value_and_grad(_our_loss(exact, batch)))
  loss, gradient = reference(params, tokens, targets)
  return Problem(config, params, tokens, targets, float(loss), gradient)


def _our_loss(config: ModelConfig, batch: int, vjp: Rule = "explicit"):
  model = language_model(config, vjp=vjp)

  def loss(params, tokens, targets):
    state = model.initial_state((batch,))
    return model.loss(params, state, tokens, targets)[0]

  return loss


def lstm_jax(problem: Problem, vjp: Rule = "explicit") -> Peer:
  """This project's model: explicit gradients."""
  loss = _our_loss(problem.config, problem.tokens.shape[1], vjp)
  name = "lstm_jax" if vjp == "explicit" else vjp
  return _peer(name, loss, problem.params, problem, lambda w: w)


def autodiff(problem: Problem) -> Peer:
  """The same forward as ours, its gradient left to JAX."""
  return lstm_jax(problem, "autodiff")


def jax_peer(name: str) -> Callable[[Problem], Peer]:
  """Return the step with a JAX library's layers."""

  def make(problem: Problem) -> Peer:
    if problem.config.compute_dtype is not None:
      raise Missing("compared in float32 only")
    kind = LAYERS[name][0]
    layers = [kind("lstm", weights) for weights in problem.params.layers]

    def loss(params, tokens, targets):
      embedding, weights, readout, bias = params
      x = embedding[tokens]
      for layer, w in zip(layers, weights, strict=True):
        x = layer.apply(w, x)
      logits = x @ readout + bias
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
      return nats.mean()

    def port(ours):
      weights = [
        layer.port(w) for layer, w in zip(layers, ours.layers, strict=True)
      ]
      return ours.embedding, weights, ours.readout, ours.bias

    p = problem.params
    params = p.embedding, [layer.params for layer in layers], p.readout, p.bias
    return _peer(name, loss, params, problem, port)

  return make


def _peer(name, loss, params, problem: Problem, port) -> Peer:
  """Return the compiled update of a JAX loss, after comparing its gradient."""
  low = problem.config.compute_dtype is not None
  tolerance = LOW_TOLERANCE if low else TOLERANCE
  block = jnp.asarray(problem.tokens), jnp.asarray(problem.targets)
  value_and_grad = jax.value_and_grad(loss)
  found = jax.jit(value_and_grad)(params, *block)
  expected = problem.loss, port(problem.gradient)
  agree(name, found, expected, tolerance)
  rule = optax.adam(LEARNING_RATE)

  def update(params, state, tokens, targets):
    value, gradient = value_and_grad(params, tokens, targets)
    updates, state = rule.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  kept = [jax.tree.map(jnp.copy, params), rule.init(params)]
  program, seconds, size = compiled(update, *kept, *block, donate=(0, 1))

  def run():
    *kept[:], value = jax.block_until_ready(program(*kept, *block))
    return value

  return Peer(run, seconds, size)


def pytorch(problem: Problem) -> Peer:
  """PyTorch: nn.Embedding, nn.LSTM, nn.Linear, eager, fused Adam."""
  import torch
  from torch import nn

  config, ours = problem.config, problem.params
  device = "cuda" if torch.cuda.is_available() else "cpu"
  low = config.compute_dtype is not None
  embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
  readout = nn.Linear(config.hidden_size, config.vocabulary_size)
  stack = torch_layer("lstm", ours.layers, device)
  model = nn.ModuleList([embedding, stack, readout]).to(device)
  # A second bias that our model does not have: kept, but not trained.
  for k in range(config.num_layers):
    getattr(stack, f"bias_hh_l{k}").requires_grad_(False)

  def tensor(array):
    return torch.tensor(np.array(array), device=device)

  with torch.no_grad():
    embedding.weight.copy_(tensor(ours.embedding))
    readout.weight.copy_(tensor(ours.readout.T))
    readout.bias.copy_(tensor(ours.bias))
  weights = [p for p in model.parameters() if p.requires_grad]
  rule = torch.optim.Adam(weights, LEARNING_RATE, fused=True)
  tokens = tensor(problem.tokens).long()
  targets = tensor(problem.targets).long().ravel()

  def gradient():
    with torch.autocast(device, torch.bfloat16, enabled=low):
      hs, _ = stack(embedding(tokens))
      logits = readout(hs).reshape(-1, config.vocabulary_size)
    loss = nn.functional.cross_entropy(logits.float(), targets)
    rule.zero_grad(set_to_none=True)
    loss.backward()
    return loss

  loss = gradient().item()
  found = [embedding.weight.grad, readout.weight.grad.T, readout.bias.grad]
  expected = [problem.gradient.embedding, problem.gradient.readout]
  expected.append(problem.gradient.bias)
  for k, layer in enumerate(problem.gradient.layers):
    for name in ("weight_ih", "weight_hh", "bias_ih"):
      grad = getattr(stack, f"{name}_l{k}").grad
      found.append(grad.mT if grad.ndim > 1 else grad)
    expected += list(layer)
  found = [g.float().cpu().numpy() for g in found]
  tolerance = LOW_TOLERANCE if low else TOLERANCE
  agree("pytorch", [loss, *found], [problem.loss, *expected], tolerance)

  def run():
    loss = gradient()
    rule.step()
    return loss.item()

  return Peer(run)


def ceiling(problem: Problem) -> Peer:
  """The step's products alone, in their shapes and order, and nothing else.

  Forward and backward of each layer's recurrent product run step after step, as
  they must; every other product is one. Left out: gathers, gates, softmax and
  Adam. Its time is a lower bound for these products as XLA computes them.
  """
  config = problem.config
  steps, batch = problem.tokens.shape
  dtype = config.compute_dtype or jnp.float32
  size, hidden, vocabulary = (
    config.embedding_size,
    config.hidden_size,
    config.vocabulary_size,
  )
  draw = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(draw.normal(size=shape) / 64, dtype)

  def product(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)

  def weight_product(xs, das):
    return jnp.einsum(
      "tbh,tbk->hk", xs, das, preferred_element_type=jnp.float32
    )

  arguments = {
    "table": (normal(vocabulary, size), normal(size, 4 * hidden)),
    "dtable": normal(vocabulary, 4 * hidden),
    "w_x": [normal(hidden, 4 * hidden) for _ in range(config.num_layers - 1)],
    "w_h": [normal(hidden, 4 * hidden) for _ in range(config.num_layers)],
    "readout": normal(hidden, vocabulary),
    "h": normal(batch, hidden),
    "hs": normal(steps, batch, hidden),
    "das": normal(steps, batch, 4 * hidden),
    "dy": normal(steps, batch, vocabulary),
  }

  def products(a):
    results = [product(*a["table"]), product(a["hs"], a["readout"])]
    results += [product(a["dy"], a["readout"].T)]
    results += [weight_product(a["hs"], a["dy"])]
    results += [product(a["dtable"], a["table"][1].T)]
    results += [product(a["table"][0].T, a["dtable"])]
    for w_x in a["w_x"]:
      results += [product(a["hs"], w_x), product(a["das"], w_x.T)]
      results += [weight_product(a["hs"], a["das"])]
    for w_h in a["w_h"]:

      def forward(h, _, w_h=w_h):
        a, b, c, d = jnp.split(product(h, w_h), 4, axis=-1)
        return (a + b + c + d).astype(dtype), None  # the next needs it

      def backward(dh, da, w_h=w_h):
        da = (da[:, :hidden] + dh).astype(dtype)
        da = jnp.concatenate([da] * 4, axis=-1)
        return product_transposed(da, w_h), None

      results.append(jax.lax.scan(forward, a["h"], None, length=steps)[0])
      zeros = jnp.zeros((batch, hidden), jnp.float32)
      results.append(jax.lax.scan(backward, zeros, a["das"])[0])
      results.append(weight_product(a["hs"], a["das"]))
    return results

  program, seconds, size = compiled(products, arguments)
  return Peer(lambda: jax.block_until_ready(program(arguments)), seconds, size)


def models() -> dict[str, tuple[Callable[[Problem], Peer], str]]:
  """Return every step and the package it needs, ours first."""
  own: dict[str, tuple[Callable[[Problem], Peer], str]] = {
    "lstm_jax": (lstm_jax, "jax"),
    "autodiff": (autodiff, "jax"),
  }
  for name, (_, package) in LAYERS.items():
    if name not in own:
      own[name] = jax_peer(name), package
  own["pytorch"] = pytorch, "torch"
  own["products alone"] = ceiling, "jax"
  return own
