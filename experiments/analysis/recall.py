"""Delayed recall: name a symbol that was shown before d blanks.

  time     0        1 … d    d + 1
  token    symbol   blanks   cue      → the symbol

The model reads one of 8 symbols, then d blanks, then a cue, after which it has
to name the symbol. The blanks carry no information, so a model that names it
has stored it for d + 1 time steps. Only the answer has a loss, whose gradient
has to reach as far back. Each delay is learned from scratch, without a
curriculum of shorter ones.

A cell can start with gate biases that fit the time to bridge. A unit whose
forget gate is f = σ(b) keeps a share fᵈ of its memory over d time steps. With
b = log(u), f = u / (u + 1), and the memory decays over about u time steps.
Chrono initialisation draws u uniformly between 1 and T − 1 for each unit, where
T is the longest time to bridge. An input gate, where the cell has one, gets −b,
so that new inputs replace as much as is forgotten.

References: Hochreiter and Schmidhuber (1997), Long short-term memory, section
5, whose tasks have the same parts; Tallec and Ollivier (2018), Can recurrent
neural networks warp time?, section 2, equation 16.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lstm_jax.language import LanguageModel, LanguageParams, cross_entropy
from lstm_jax.training import (
  OptimizerConfig,
  make_optimizer,
  on_one_device,
  over_members,
  place_members,
)

SYMBOLS = 8  # K; an accuracy of 1 / K is chance
BLANK, CUE = SYMBOLS, SYMBOLS + 1
VOCABULARY = CUE + 1
EMBEDDING = 16
BATCH_SIZE = 32
TEST_SIZE = 512  # sequences
# Training steps in a jitted call, whose overhead exceeds the time of a small
# step.
STEPS_PER_CALL = 50


class GateBiases(NamedTuple):
  """Which parts of a cell's b, [num_gates·H], decide how long it remembers."""

  num_gates: int
  signs: dict[int, int]  # gate → 1 if it keeps the memory, −1 if it replaces it


LSTM = GateBiases(4, {0: -1, 1: 1})  # [i, f, g, o]
GRU = GateBiases(3, {1: 1})  # [r, z, n]; z keeps h
GATE_BIASES = {
  "lstm": LSTM,
  "layernorm_lstm": LSTM,
  "projected_lstm": LSTM,
  "peephole_lstm": LSTM,
  "mogrifier_lstm": LSTM,
  "slstm": LSTM,  # b of i scales c and n alike: it has no effect on c / n
  "coupled_lstm": GateBiases(3, {0: 1}),  # [f, g, o]
  "gru": GRU,
  "gru_reset_before": GRU,
  "min_gru": GateBiases(2, {0: -1}),  # [z, n]; here z replaces h
  "min_lstm": GateBiases(3, {0: 1, 1: -1}),  # [f, i, n]
}


def with_chrono_biases(
  params: LanguageParams, cell: str, key: jax.Array, longest: int
) -> LanguageParams:
  """Return the weights of a model with chrono initialisation of its gates.

  Args:
    params: initial weights; all layers have the same cell.
    cell: the name of this cell, one of `GATE_BIASES`.
    key: draws the time of each unit.
    longest: T, the longest time to bridge, in time steps.

  Raises:
    ValueError: the cell has no gate that keeps its memory, or T is below 2.
  """
  if cell not in GATE_BIASES:
    known = ", ".join(GATE_BIASES)
    raise ValueError(
      f"cell must have a gate that keeps its memory ({known}), got {cell}"
    )
  if longest < 2:
    raise ValueError(f"longest must be at least 2, got {longest}")
  num_gates, signs = GATE_BIASES[cell]
  layers = []
  for index, layer in enumerate(params.layers):
    b = layer.b.reshape(num_gates, -1)
    times = jax.random.uniform(
      jax.random.fold_in(key, index), b.shape[1:], b.dtype, 1, longest - 1
    )
    for gate, sign in signs.items():
      b = b.at[gate].set(sign * jnp.log(times))
    layers.append(layer._replace(b=b.reshape(layer.b.shape)))
  return params._replace(layers=tuple(layers))


class Recall(NamedTuple):
  """What an ensemble of S seeds has learned of one delay, at its best rate."""

  learning_rate: float
  # Of each seed, on the test sequences, whose loss also chose the rate; about
  # 1 / K if the seed diverged.
  accuracy: list[float]
  nats: list[float | None]  # test loss of each seed; None where it diverged


def draw(
  key: jax.Array, delay: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
  """Return random sequences: (tokens [d + 2, B], their symbols [B])."""
  symbols = jax.random.randint(key, (batch_size,), 0, SYMBOLS, jnp.int32)
  blanks = jnp.full((delay, batch_size), BLANK, jnp.int32)
  cue = jnp.full((1, batch_size), CUE, jnp.int32)
  return jnp.concatenate([symbols[None], blanks, cue]), symbols


def learn(
  model: LanguageModel,
  keys: jax.Array,
  delay: int,
  num_steps: int,
  learning_rates: tuple[float, ...],
  chrono: str | None = None,
  mesh: Mesh | None = None,
) -> Recall:
  """Train an ensemble at each learning rate; return the result of the best.

  Args:
    model: a model of `VOCABULARY` tokens.
    keys: random keys, one for each of S seeds, [S].
    delay: d, the blanks between symbol and cue.
    num_steps: training steps, each on `BATCH_SIZE` new sequences.
    learning_rates: of Adam, at the peak of the schedule. The best has the
      fewest seeds that diverge, and then the lowest mean loss on the test
      sequences.
    chrono: the name of the model's cell, for initial biases that fit the d + 2
      time steps of a sequence; None for the usual biases of the cell.
    mesh: the devices that share the seeds (`lstm_jax.training.over_members`).

  Raises:
    ValueError: `chrono` names a cell without a gate that keeps its memory.
  """
  split = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)
  init_keys, train_keys, test_keys = split(keys)
  init_all = _init_program(model, num_steps)
  train_all, test_all = _programs(model, delay, num_steps, mesh)
  steps = jnp.arange(num_steps)
  results: list[tuple[tuple[int, float], Recall]] = []
  for rate in learning_rates:
    params, opt_state = init_all(init_keys)
    if chrono is not None:
      params = _with_chrono(params, init_keys, chrono, delay + 2)
    members = params, opt_state
    if mesh:
      members = place_members(members, mesh)
    for first in range(0, num_steps, STEPS_PER_CALL):
      chunk = steps[first : first + STEPS_PER_CALL]
      shared = chunk, jnp.asarray(rate)
      members = train_all((members, train_keys), shared)
    found = on_one_device(test_all((members[0], test_keys), ()))
    accuracy, nats = (np.asarray(x) for x in found)
    losses = [float(n) if np.isfinite(n) else None for n in nats]
    results.append((rank(nats), Recall(rate, accuracy.tolist(), losses)))
  return min(results, key=lambda result: result[0])[1]


def _optimizer(num_steps: int) -> optax.GradientTransformation:
  """Return Adam at rate 1.

  Its update is proportional to its learning rate, so one program, which
  multiplies the updates of rate 1, serves every rate.
  """
  config = OptimizerConfig(learning_rate=1.0, weight_decay=0.0)
  return make_optimizer(config, num_steps)


@functools.lru_cache(maxsize=16)
def _init_program(model: LanguageModel, num_steps: int) -> Callable:
  """Return keys [S] -> (weights, optimizer state) of every seed."""

  def init(key):
    init_key, _ = jax.random.split(key)
    params = model.init(init_key)
    return params, _optimizer(num_steps).init(params)

  return jax.jit(jax.vmap(init))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _with_chrono(
  params: LanguageParams, keys: jax.Array, cell: str, longest: int
) -> LanguageParams:
  """Return the weights of every seed with biases that fit a longest time.

  The second child of each seed's key [S] draws the biases; the first child has
  drawn the weights.
  """

  def change(params, key):
    _, chrono_key = jax.random.split(key)
    return with_chrono_biases(params, cell, chrono_key, longest)

  return jax.vmap(change)(params, keys)


@functools.lru_cache(maxsize=16)
def _programs(
  model: LanguageModel, delay: int, num_steps: int, mesh: Mesh | None
) -> tuple[Callable, Callable]:
  """Return the programs of all seeds: training steps, and the test."""
  optimizer = _optimizer(num_steps)

  def answers(params, key, batch_size):
    tokens, symbols = draw(key, delay, batch_size)
    state = model.initial_state((batch_size,))
    _, logits = model.apply(params, state, tokens)
    return logits[-1], symbols

  def loss(params, key):
    return cross_entropy(*answers(params, key, BATCH_SIZE)).mean()

  # `own` is what one seed has, `shared` what all seeds have in common.
  def train_steps(own, shared):
    (member, key), (steps, rate) = own, shared

    def body(member, step):
      params, opt_state = member
      gradient = jax.grad(loss)(params, jax.random.fold_in(key, step))
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
      return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(body, member, steps)[0]

  def test(own, shared):
    (params, key), () = own, shared
    logits, symbols = answers(params, key, TEST_SIZE)
    accuracy = (logits.argmax(-1) == symbols).mean()
    return accuracy, cross_entropy(logits, symbols).mean()

  train_all, test_all = (
    jax.jit(over_members(f, mesh)) for f in (train_steps, test)
  )
  return train_all, test_all


def rank(nats: np.ndarray) -> tuple[int, float]:
  """Return (the number of seeds that diverged, the mean loss of the others).

  Smaller is better; the mean is infinite if there are no others.
  """
  finite = nats[np.isfinite(nats)]
  mean = float(finite.mean()) if len(finite) else math.inf
  return len(nats) - len(finite), mean


def longest(accuracies: dict[int, float]) -> int:
  """Return the longest delay up to which all accuracies are above 0.9.

  Return 0 if the accuracy of the shortest delay is not above 0.9.
  """
  last = 0
  for delay in sorted(accuracies):
    if accuracies[delay] <= 0.9:
      break
    last = delay
  return last
