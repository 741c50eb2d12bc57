"""States, gates and gradient paths of a model: those of its equations.

A path has the norms of the gradient of one prediction with respect to the state
0, 1, … W − 1 time steps before.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.context import gradient_paths
from experiments.analysis.states import (
  MEANINGS,
  is_gate,
  meaning,
  signals,
  trace_layers,
)
from lstm_jax.language import LanguageParams, ModelConfig, language_model
from lstm_jax.testing.mutation import plant
from tests.contract import CELLS, NAMES, TABLE
from tests.draws import gaussian, worst

N, V, E, H, W = 12, 7, 3, 5, 8
TOKENS = np.random.default_rng(1).integers(0, V, N).astype(np.int32)


def make(cell, key, *, tied=False, layers=2):
  """Return a model and Gaussian weights, biases and gains included."""
  sizes = {"embedding_size": H if tied else E, "hidden_size": H}
  config = ModelConfig(
    cell, **sizes, num_layers=layers, tied=tied, dtype=jnp.float64
  )
  model = language_model(config, V)
  shapes = jax.eval_shape(model.init, key)
  return model, gaussian(key, cell, shapes)


def sigmoid(a):
  return 1 / (1 + np.exp(-a))


def normalized(u):
  return (u - u.mean()) / np.sqrt(u.var() + 1e-5)


def modulated(p, x, h):
  for k, q in enumerate(p.q):
    x = 2 * sigmoid(h @ q) * x
    if k < len(p.r):
      h = 2 * sigmoid(x @ p.r[k]) * h
  return x, h


def slstm_gates(p, x, state):
  """Return the gates: i = exp(aᵢ) and f = exp(m) σ(a_f), over the larger."""
  ai, af, ag, ao = np.split(x @ p.w_x + p.b, 4)
  heads = np.split(state.h, len(p.w_h))
  ah = [h @ w for h, w in zip(heads, p.w_h, strict=True)]
  ah = np.concatenate([np.split(a, 4) for a in ah], axis=1)
  ai, af, ag, ao = ai + ah[0], af + ah[1], ag + ah[2], ao + ah[3]
  kept = np.log(sigmoid(af)) + np.where(state.n > 0, state.m, -np.inf)
  m = np.maximum(kept, ai)
  gates = np.exp(ai - m), np.exp(kept - m), np.tanh(ag), sigmoid(ao)
  return dict(zip("ifgo", gates, strict=True))


def gates_by_hand(name, p, x, h, c, c_next):
  """Return the gates and candidates that `signals` has for one step.

  They follow the equations of the cells' files. For min_gru and min_lstm there
  are none, since `signals` does not have their gates.
  """
  if name in ("rnn", "relu_rnn", "min_gru", "min_lstm", "lru"):
    return {}
  if name == "gru":
    x_r, x_z, x_n = np.split(x @ p.w_x + p.b, 3)
    u_r, u_z, u_n = np.split(h @ p.w_h, 3)
    r = sigmoid(x_r + u_r)
    n = np.tanh(x_n + r * (u_n + p.b_n))
    return {"r": r, "z": sigmoid(x_z + u_z), "n": n}
  if name == "gru_reset_before":
    x_r, x_z, x_n = np.split(x @ p.w_x + p.b, 3)
    w_r, w_z, w_n = np.split(p.w_h, 3, axis=1)
    r = sigmoid(x_r + h @ w_r)
    n = np.tanh(x_n + (r * h) @ w_n)
    return {"r": r, "z": sigmoid(x_z + h @ w_z), "n": n}
  if name == "mogrifier_lstm":
    x, h = modulated(p, x, h)
  of_x, of_h = x @ p.w_x, h @ p.w_h
  if name == "layernorm_lstm":
    of_x, of_h = p.gain_x * normalized(of_x), p.gain_h * normalized(of_h)
  names = "fgo" if name == "coupled_lstm" else "ifgo"
  parts = np.split(of_x + of_h + p.b, len(names))
  a = dict(zip(names, parts, strict=True))
  if name == "peephole_lstm":
    w_i, w_f, w_o = np.split(p.w_c, 3)
    a |= {"i": a["i"] + w_i * c, "f": a["f"] + w_f * c}
    a["o"] = a["o"] + w_o * c_next
  return {k: (np.tanh if k == "g" else sigmoid)(v) for k, v in a.items()}


@pytest.mark.everyday(1)
@NAMES
def test_states_and_gates_are_those_of_the_step(name, key):
  cell = TABLE[name].cell
  model, params = make(cell, key)
  layers, logits = trace_layers(cell, params, jnp.asarray(TOKENS))
  apply = jax.jit(model.apply)
  _, expected = apply(params, model.initial_state(()), TOKENS)
  assert np.abs(logits - expected).max() < 1e-12
  xs = np.asarray(params.embedding)[TOKENS]
  step = jax.jit(cell.step)
  for layer, weights in zip(layers, params.layers, strict=True):
    values = {k: np.asarray(v) for k, v in signals(cell, layer).items()}
    assert set(values) <= set(MEANINGS)
    arrays = type(weights)(*map(np.asarray, weights))
    state, hs = cell.initial_state(weights), []
    for t, x in enumerate(xs):
      after = step(weights, state, x)
      before, now = ({"c": None} | s._asdict() for s in (state, after))
      if name == "slstm":
        gates = slstm_gates(arrays, x, jax.tree.map(np.asarray, state))
      else:
        gates = gates_by_hand(
          name, arrays, x, np.asarray(before["h"]), before["c"], now["c"]
        )
      expected = after._asdict() | gates
      assert set(expected) == set(values)
      for letter, value in expected.items():
        assert np.abs(values[letter][t] - value).max() < 1e-12, letter
        assert is_gate(cell, letter) == ("gate" in meaning(cell, letter))
      state = after
      hs.append(np.asarray(after.h))
    xs = np.array(hs)


def test_the_states_of_an_own_cell_are_no_gates():
  """Whatever their names: r and i may be real and imaginary parts."""
  own = ModuleType("own")
  for letter in "hcrizfo":
    assert not is_gate(own, letter)
  assert meaning(own, "h") == "output"
  assert meaning(own, "r") == meaning(own, "i") == "state"


def test_the_logits_of_a_tied_readout_are_those_of_the_model(key):
  cell = TABLE["lstm"].cell
  model, params = make(cell, key, tied=True, layers=1)
  _, logits = trace_layers(cell, params, jnp.asarray(TOKENS))
  _, expected = model.apply(params, model.initial_state(()), TOKENS)
  assert np.abs(logits - expected).max() < 1e-12


def autodiff_gradient(cell, params: LanguageParams):
  """Return a function of t: ∂ log p(xₜ₊₁) by a term added to every state."""
  embedding = params.embedding
  tied = params.readout is None
  readout = embedding.T if tied else params.readout
  rows = embedding[TOKENS] * (H**0.5 if tied else 1.0)  # tied: √E, and E = H

  def log_p(added, t):
    xs = rows
    for weights, terms in zip(params.layers, added, strict=True):

      def body(state, inputs, weights=weights):
        x, term = inputs
        after = cell.forward(weights, state, x)[0]
        after = jax.tree.map(jnp.add, after, term)
        return after, after.h

      _, xs = jax.lax.scan(body, cell.initial_state(weights), (xs, terms))
    logits = xs[t] @ readout + params.bias
    return jax.nn.log_softmax(logits)[jnp.asarray(TOKENS)[t + 1]]

  zeros = tuple(cell.initial_state(p, (N,)) for p in params.layers)
  gradient = jax.jit(jax.grad(log_p))
  return lambda t: gradient(zeros, t)


def autodiff_paths(cell, params):
  """Return the norms that `gradient_paths` computes, by autodiff."""
  gradient = autodiff_gradient(cell, params)
  paths = tuple(
    jax.tree.map(lambda _: np.zeros((N, W)), cell.initial_state(p))
    for p in params.layers
  )
  for t in range(N - 1):
    for norms, d_states in zip(paths, gradient(t), strict=True):
      for field, d in zip(norms, map(np.asarray, d_states), strict=True):
        for back in range(min(W, t + 1)):
          field[t, back] = np.linalg.norm(d[t - back])
  return paths


def explicit_paths(cell, params, tokens=TOKENS):
  layers, _ = trace_layers(cell, params, jnp.asarray(tokens))
  return gradient_paths(cell, params, layers, tokens, W)


@pytest.mark.everyday(1)
@CELLS
def test_paths_are_the_gradient_of_a_term_added_to_each_state(cell, key):
  _, params = make(cell, key)
  paths = explicit_paths(cell, params)
  assert worst(paths, autodiff_paths(cell, params)) < 1e-12
  # 0 before the start of the text, and for the last token: it has no target.
  assert paths[0].h[2, 2] > 0 and not paths[0].h[2, 3:].any()
  assert not paths[1].h[N - 1].any()


@pytest.mark.exhaustive
def test_paths_in_chunks_and_with_a_tied_readout_are_the_same(key, monkeypatch):
  cell = TABLE["gru"].cell
  _, params = make(cell, key, tied=True)
  monkeypatch.setattr("experiments.analysis.context.PREDICTIONS", 5)
  assert (
    worst(explicit_paths(cell, params), autodiff_paths(cell, params)) < 1e-12
  )


@pytest.mark.everyday(1)
@pytest.mark.parametrize("term", ["dh", "dc"])
def test_a_planted_error_is_caught(term, key):
  cell = TABLE["lstm"].cell
  _, params = make(cell, key)
  paths = explicit_paths(plant(cell, term), params)
  assert worst(paths, autodiff_paths(cell, params)) > 1e-4
