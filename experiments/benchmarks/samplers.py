"""Sampling from a language model, one character at a time.

Four programs are compared: our `sample`; a compiled loop over Flax's cell; an
eager loop over PyTorch's layer; and an eager loop over our model as an ONNX
file in onnxruntime, where a token is the argmax of the logits plus Gumbel noise
that NumPy draws. All are timed at temperature 1; at temperature 0 the first
characters of their samples must equal ours. JAX's programs are compiled in the
warm-up, so that the seconds to compile are not known; memory is not measured.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.layers import as_tensor, torch_layer
from experiments.benchmarks.timing import Makers, Peer, Unsupported
from lstm_jax import lstm
from lstm_jax.interop.flax import to_linen
from lstm_jax.interop.onnx import language_model_to_onnx
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  ModelConfig,
  language_model,
  sample,
)

CHECKED = 30  # characters of each sample that must equal ours
VOCABULARY_SIZE = 65  # of Tiny Shakespeare


class Problem(NamedTuple):
  """A model with one LSTM layer, and the samples to draw."""

  model: LanguageModel
  params: LanguageParams
  num_samples: int
  length: int  # of each sample, in characters
  greedy_samples: np.ndarray  # [num_samples, CHECKED], at temperature 0


def make_problem(hidden_size: int, num_samples: int, length: int) -> Problem:
  """Return a character model with random weights, and the samples to draw."""
  config = ModelConfig(hidden_size=hidden_size)
  model = language_model(config, VOCABULARY_SIZE)
  params = model.init(jax.random.key(0))
  expected = _ours(model, params, num_samples, CHECKED, temperature=0.0)
  return Problem(model, params, num_samples, length, expected)


def _ours(
  model: LanguageModel,
  params: LanguageParams,
  num_samples: int,
  length: int,
  temperature: float = 1.0,
) -> np.ndarray:
  """Return what our model samples after token 0, int32 [N, length]."""
  prompt = np.zeros(1, np.int32)
  return sample(
    model,
    params,
    jax.random.key(0),
    prompt,
    length,
    num_samples=num_samples,
    temperature=temperature,
  )


def our_sampler(problem: Problem) -> Peer:
  """Return the peer of our `sample`."""
  model, params, num_samples, length, _ = problem
  return Peer(lambda: _ours(model, params, num_samples, length))


def flax_loop(problem: Problem) -> Peer:
  """Return the peer of Flax linen's cell in a compiled scan that samples."""
  from flax import linen as nn

  embedding, (weights,), readout, bias = problem.params
  cell = nn.OptimizedLSTMCell(weights.w_h.shape[0])
  cell_params = to_linen(weights)

  def generate(params, key, length, greedy):
    embedding, cell_params, readout, bias = params

    def body(carry, key):
      state, tokens = carry
      state, h = cell.apply({"params": cell_params}, state, embedding[tokens])
      logits = h @ readout + bias
      if greedy:
        tokens = jnp.argmax(logits, axis=-1)
      else:
        tokens = jax.random.categorical(key, logits)
      return (state, tokens.astype(jnp.int32)), tokens

    tokens = jnp.zeros(problem.num_samples, jnp.int32)
    shape = problem.num_samples, embedding.shape[1]
    state = cell.initialize_carry(key, shape)
    keys = jax.random.split(key, length)
    return jax.lax.scan(body, (state, tokens), keys)[1].T

  generate = jax.jit(generate, static_argnums=(2, 3))
  params = embedding, cell_params, readout, bias
  key = jax.random.key(0)
  _check_samples("flax linen", generate(params, key, CHECKED, True), problem)
  return Peer(lambda: np.asarray(generate(params, key, problem.length, False)))


def pytorch_loop(problem: Problem) -> Peer:
  """Return the peer of PyTorch's layer, called once per character.

  It runs under inference_mode.
  """
  import torch

  embedding, layers, readout, bias = problem.params
  layer = torch_layer("lstm", layers)
  embedding, readout, bias = map(as_tensor, (embedding, readout, bias))

  @torch.inference_mode()
  def generate(length, greedy):
    tokens = as_tensor(np.zeros(problem.num_samples, np.int64))
    state, samples = None, []
    for _ in range(length):
      hs, state = layer(embedding[tokens][None], state)
      logits = hs[0] @ readout + bias
      if greedy:
        tokens = logits.argmax(-1)
      else:
        tokens = torch.multinomial(logits.softmax(-1), 1)[:, 0]
      samples.append(tokens)
    return torch.stack(samples, 1).cpu().numpy()

  _check_samples("pytorch", generate(CHECKED, True), problem)
  return Peer(lambda: generate(problem.length, False))


def onnxruntime_loop(problem: Problem) -> Peer:
  """Return the peer of our model as an ONNX file, run once per character.

  It runs on the CPU.

  Raises:
    Unsupported: JAX runs on another device.
    ValueError: it writes other samples than ours at temperature 0.
  """
  import onnxruntime

  if jax.default_backend() != "cpu":
    raise Unsupported("it is compared on the CPU only")
  file = language_model_to_onnx(lstm, problem.params)
  session = onnxruntime.InferenceSession(
    file.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  names = [output.name for output in session.get_outputs()]
  # The first input is "tokens", the others are the state.
  state_names = [given.name for given in session.get_inputs()][1:]
  hidden_size = problem.params.layers[0].w_h.shape[0]
  rng = np.random.default_rng(0)

  def generate(length, greedy):
    tokens = np.zeros((1, problem.num_samples), np.int64)
    zeros = np.zeros((problem.num_samples, hidden_size), np.float32)
    state, samples = [zeros] * len(state_names), []
    for _ in range(length):
      inputs = dict(zip(state_names, state, strict=True))
      logits, *state = session.run(names, {"tokens": tokens, **inputs})
      if not greedy:
        logits = logits + rng.gumbel(size=logits.shape)
      tokens = logits.argmax(-1)
      samples.append(tokens[0])
    return np.stack(samples, 1)

  _check_samples("onnxruntime", generate(CHECKED, True), problem)
  return Peer(lambda: generate(problem.length, False))


def _check_samples(name: str, samples: Any, problem: Problem) -> None:
  """Raise ValueError unless a peer's samples at temperature 0 are ours."""
  samples, expected = np.asarray(samples), problem.greedy_samples
  if samples.shape != expected.shape:
    raise ValueError(
      f"{name} must write samples {expected.shape}, got {samples.shape}"
    )
  different = np.argwhere(samples != expected)
  if len(different):
    row, place = different[0]
    raise ValueError(
      f"{name} must write token {expected[row, place]} at place {place} of "
      f"sample {row} at temperature 0, as we do, got {samples[row, place]}"
    )


def samplers() -> Makers:
  """Return the makers of all peers."""
  return {
    "lstm_jax": (our_sampler, "jax"),
    "flax linen": (flax_loop, "flax"),
    "pytorch": (pytorch_loop, "torch"),
    "onnxruntime": (onnxruntime_loop, "onnxruntime"),
  }
