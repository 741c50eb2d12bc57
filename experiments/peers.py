"""The same language model as users of other libraries write it.

Each peer takes our parameters and returns a whole training step at its best:
one compiled Adam update, its state kept between calls. `experiments.benchmark`
has the first losses of all be equal before it times any of them.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.language import LanguageParams, ModelConfig, language_model
from lstm_jax.sequence.unroll import Rule

LEARNING_RATE = 1e-3


class Problem(NamedTuple):
  """One language-model step: the model, its weights and a block of text."""

  config: ModelConfig
  params: LanguageParams
  tokens: np.ndarray  # [T, B]
  targets: np.ndarray  # [T, B]


Step = Callable[[], Any]  # makes one update; returns the loss before it


def _compiled(loss: Callable, params: Any, problem: Problem) -> Step:
  """Return the update of a JAX loss, compiled, with optax's Adam."""
  rule = optax.adam(LEARNING_RATE)

  @jax.jit
  def update(params, state, tokens, targets):
    value, gradient = jax.value_and_grad(loss)(params, tokens, targets)
    updates, state = rule.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  kept = [params, rule.init(params)]
  block = jnp.asarray(problem.tokens), jnp.asarray(problem.targets)

  def step():
    *kept[:], value = jax.block_until_ready(update(*kept, *block))
    return value

  return step


def _nats(logits, targets):
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return losses.mean()


def lstm_jax(problem: Problem, vjp: Rule = "explicit") -> Step:
  """This project: explicit gradients."""
  model = language_model(problem.config, vjp=vjp)
  state = model.initial_state(problem.tokens.shape[1:])

  def loss(params, tokens, targets):
    return model.loss(params, state, tokens, targets)[0]

  return _compiled(loss, problem.params, problem)


def autodiff(problem: Problem) -> Step:
  """The same forward as ours, its gradient left to JAX."""
  return lstm_jax(problem, vjp="autodiff")


def flax_linen(problem: Problem) -> Step:
  """Flax linen: Embed, RNN(OptimizedLSTMCell) for each layer, Dense."""
  from flax import linen as nn

  config = problem.config

  class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      x = nn.Embed(config.vocabulary_size, config.embedding_size)(tokens)
      for _ in range(config.num_layers):
        cell = nn.OptimizedLSTMCell(config.hidden_size)
        x = nn.RNN(cell, time_major=True)(x)
      return nn.Dense(config.vocabulary_size)(x)

  model = Model()
  ours = problem.params
  variables: dict[str, Any] = {
    "Embed_0": {"embedding": ours.embedding},
    "Dense_0": {"kernel": ours.readout, "bias": ours.bias},
  }
  for layer, weights in enumerate(ours.layers):
    gates = zip(*(jnp.split(w, 4, axis=-1) for w in weights), strict=True)
    cell = {}
    for name, (w_x, w_h, b) in zip("ifgo", gates, strict=True):
      cell[f"i{name}"] = {"kernel": w_x}
      cell[f"h{name}"] = {"kernel": w_h, "bias": b}
    variables[f"OptimizedLSTMCell_{layer}"] = cell

  def loss(params, tokens, targets):
    return _nats(model.apply({"params": params}, tokens), targets)

  return _compiled(loss, variables, problem)


def haiku(problem: Problem) -> Step:
  """Haiku: Embed, dynamic_unroll(LSTM) for each layer, Linear."""
  import haiku as hk

  config, batch = problem.config, problem.tokens.shape[1]

  @hk.without_apply_rng
  @hk.transform
  def model(tokens):
    x = hk.Embed(config.vocabulary_size, config.embedding_size)(tokens)
    for _ in range(config.num_layers):
      core = hk.LSTM(config.hidden_size)
      x, _ = hk.dynamic_unroll(core, x, core.initial_state(batch))
    return hk.Linear(config.vocabulary_size)(x)

  # Haiku's gates are i, g, f, o, and it adds 1 to the forget gate in the step.
  ours = problem.params
  weights = {
    "embed": {"embeddings": ours.embedding},
    "linear": {"w": ours.readout, "b": ours.bias},
  }
  for layer, (w_x, w_h, b) in enumerate(ours.layers):
    i, f, g, o = jnp.split(jnp.concatenate([w_x, w_h, b[None]]), 4, axis=-1)
    w = jnp.concatenate([i, g, f.at[-1].add(-1), o], axis=-1)
    name = "lstm" if layer == 0 else f"lstm_{layer}"
    weights[f"{name}/linear"] = {"w": w[:-1], "b": w[-1]}

  def loss(params, tokens, targets):
    return _nats(model.apply(params, tokens), targets)

  return _compiled(loss, weights, problem)


def equinox(problem: Problem) -> Step:
  """Equinox: LSTMCell, vmapped over the batch, in a scan."""
  import equinox as eqx

  ours = problem.params
  cells = []
  for w_x, w_h, b in ours.layers:
    sizes = w_x.shape[0], w_h.shape[0]
    cell = eqx.nn.LSTMCell(*sizes, key=jax.random.key(0))
    values = w_x.T, w_h.T, b
    cells.append(
      eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), cell, values)
    )
  batch = problem.tokens.shape[1]

  def loss(params, tokens, targets):
    embedding, cells, readout, bias = params
    x = embedding[tokens]
    for cell in cells:
      zeros = jnp.zeros((batch, cell.hidden_size))

      def body(state, x, cell=cell):
        state = jax.vmap(cell)(x, state)
        return state, state[0]

      _, x = jax.lax.scan(body, (zeros, zeros), x)
    return _nats(x @ readout + bias, targets)

  arrays, static = eqx.partition(cells, eqx.is_array)

  def array_loss(params, tokens, targets):
    embedding, arrays, readout, bias = params
    cells = eqx.combine(arrays, static)
    return loss((embedding, cells, readout, bias), tokens, targets)

  params = ours.embedding, arrays, ours.readout, ours.bias
  return _compiled(array_loss, params, problem)


def pytorch(problem: Problem) -> Step:
  """PyTorch: nn.Embedding, nn.LSTM, nn.Linear, eager, fused Adam."""
  import torch
  from torch import nn

  config, ours = problem.config, problem.params
  embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
  stack = nn.LSTM(config.embedding_size, config.hidden_size, config.num_layers)
  readout = nn.Linear(config.hidden_size, config.vocabulary_size)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = nn.ModuleList([embedding, stack, readout]).to(device)

  def tensor(array):
    return torch.tensor(np.array(array), device=device)

  with torch.no_grad():
    embedding.weight.copy_(tensor(ours.embedding))
    readout.weight.copy_(tensor(ours.readout.T))
    readout.bias.copy_(tensor(ours.bias))
    for layer, (w_x, w_h, b) in enumerate(ours.layers):
      getattr(stack, f"weight_ih_l{layer}").copy_(tensor(w_x.T))
      getattr(stack, f"weight_hh_l{layer}").copy_(tensor(w_h.T))
      getattr(stack, f"bias_ih_l{layer}").copy_(tensor(b))
      getattr(stack, f"bias_hh_l{layer}").zero_().requires_grad_(False)
  weights = [p for p in model.parameters() if p.requires_grad]
  rule = torch.optim.Adam(weights, LEARNING_RATE, fused=True)
  tokens = tensor(problem.tokens).long()
  targets = tensor(problem.targets).long().ravel()

  def step():
    hs, _ = stack(embedding(tokens))
    logits = readout(hs).reshape(-1, config.vocabulary_size)
    loss = nn.functional.cross_entropy(logits, targets)
    rule.zero_grad(set_to_none=True)
    loss.backward()
    rule.step()
    return loss.item()

  return step


PEERS = {
  "lstm_jax": (lstm_jax, "jax"),
  "autodiff": (autodiff, "jax"),
  "flax linen": (flax_linen, "flax"),
  "haiku": (haiku, "haiku"),
  "equinox": (equinox, "equinox"),
  "pytorch": (pytorch, "torch"),
}


def installed() -> dict[str, Callable[[Problem], Step]]:
  """Return the peers whose package can be imported, ours first."""
  return {
    name: make
    for name, (make, package) in PEERS.items()
    if importlib.util.find_spec(package)
  }
