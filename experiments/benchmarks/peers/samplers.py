"""Sampling from a language model, character after character.

This project's `sample`; a Flax user's loop, compiled; PyTorch's, eager, as its
users write it. All draw at temperature 1; at temperature 0 all must write the
same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers.layers import flax_linen, torch_layer
from experiments.benchmarks.peers.proof import Peer
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  ModelConfig,
  language_model,
  sample,
)

CHECKED = 30  # characters that all must write alike


class Problem(NamedTuple):
  """A model of one LSTM layer, and how much to write."""

  model: LanguageModel
  params: LanguageParams
  streams: int
  length: int
  greedy: np.ndarray  # [streams, CHECKED], what it writes at temperature 0


def make_problem(hidden: int, streams: int, length: int) -> Problem:
  """Return a model of that size, over 65 characters, and what it writes."""
  model = language_model(ModelConfig(65, hidden_size=hidden))
  params = model.init(jax.random.key(0))
  params = params._replace(readout=8 * params.readout)  # no near ties
  greedy = _ours(model, params, streams, CHECKED, temperature=0.0)
  return Problem(model, params, streams, length, greedy)


def _ours(model, params, streams, length, temperature=1.0):
  prompt = np.zeros(1, np.int32)
  return sample(
    model,
    params,
    jax.random.key(0),
    prompt,
    length,
    num_samples=streams,
    temperature=temperature,
  )


def lstm_jax(problem: Problem) -> Peer:
  """This project's `sample`."""
  model, params, streams, length, _ = problem
  return Peer(lambda: _ours(model, params, streams, length))


def flax_loop(problem: Problem) -> Peer:
  """Flax linen's cell in a scan that draws, compiled."""
  from flax import linen as nn

  embedding, (weights,), readout, bias = problem.params
  cell = nn.OptimizedLSTMCell(weights.w_h.shape[0])
  variables = flax_linen("lstm", weights).params["params"]["cell"]

  def write(params, key, length, greedy):
    embedding, variables, readout, bias = params

    def body(carry, key):
      state, tokens = carry
      state, h = cell.apply({"params": variables}, state, embedding[tokens])
      logits = h @ readout + bias
      if greedy:
        tokens = jnp.argmax(logits, axis=-1)
      else:
        tokens = jax.random.categorical(key, logits)
      return (state, tokens.astype(jnp.int32)), tokens

    tokens = jnp.zeros(problem.streams, jnp.int32)
    shape = problem.streams, embedding.shape[1]
    state = cell.initialize_carry(key, shape)
    keys = jax.random.split(key, length)
    return jax.lax.scan(body, (state, tokens), keys)[1].T

  write = jax.jit(write, static_argnums=(2, 3))
  params = embedding, variables, readout, bias
  key = jax.random.key(0)
  _same("flax linen", write(params, key, CHECKED, True), problem)
  return Peer(lambda: np.asarray(write(params, key, problem.length, False)))


def pytorch(problem: Problem) -> Peer:
  """PyTorch's layer called character by character under inference_mode."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  layer = torch_layer("lstm", problem.params.layers, device)
  embedding, readout, bias = (
    torch.tensor(np.array(array), device=device)
    for array in (
      problem.params.embedding,
      problem.params.readout,
      problem.params.bias,
    )
  )

  @torch.inference_mode()
  def write(length, greedy):
    tokens = torch.zeros(problem.streams, dtype=torch.long, device=device)
    state, written = None, []
    for _ in range(length):
      hs, state = layer(embedding[tokens][None], state)
      logits = hs[0] @ readout + bias
      if greedy:
        tokens = logits.argmax(-1)
      else:
        tokens = torch.multinomial(logits.softmax(-1), 1)[:, 0]
      written.append(tokens)
    return torch.stack(written, 1).cpu().numpy()

  _same("pytorch", write(CHECKED, True), problem)
  return Peer(lambda: write(problem.length, False))


def _same(name: str, found: Any, problem: Problem) -> None:
  """Raise ValueError unless a peer writes what ours does."""
  if not np.array_equal(np.asarray(found), problem.greedy):
    raise ValueError(f"{name} writes something else at temperature 0")


def samplers() -> dict[str, tuple[Callable[[Problem], Peer], str]]:
  """Return every sampler and the package it needs, ours first."""
  return {
    "lstm_jax": (lstm_jax, "jax"),
    "flax linen": (flax_loop, "flax"),
    "pytorch": (pytorch, "torch"),
  }
