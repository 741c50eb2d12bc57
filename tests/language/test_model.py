import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import unroll_stack
from lstm_jax.cells import affine
from lstm_jax.language import (
  ModelConfig,
  Regularizers,
  cross_entropy,
  language_model,
  stateful_loss,
)
from lstm_jax.language import model as model_module
from lstm_jax.testing.mutation import plant
from tests.contract import NAMES, TABLE
from tests.draws import B, H, T, normal_like, weighed, worst

V, E = 11, 4


def make(name, key, vjp="explicit", **options):
  config = ModelConfig(
    vocabulary_size=V,
    cell=TABLE[name].cell,
    embedding_size=E,
    hidden_size=H,
    num_layers=2,
    dtype=jnp.float64,
    **options,
  )
  model = language_model(config, vjp=vjp)
  start = model.init(key), model.initial_state((B,))
  params, state = normal_like(key, start)
  tokens = jax.random.randint(key, (T + 1, B), 0, V)
  return model, params, state, tokens[:-1], tokens[1:]


@NAMES
def test_apply_is_embedding_stack_and_readout_one_after_the_other(name, key):
  model, params, state, tokens, _ = make(name, key)

  def plainly(params, state):
    embedded = params.embedding[tokens]
    cell = TABLE[name].cell
    state, hs = unroll_stack(cell, params.layers, state, embedded)
    return state, jnp.einsum("tbh,hv->tbv", hs, params.readout) + params.bias[
      None, None
    ]

  def applied(params, state):
    return model.apply(params, state, tokens)

  a, b = (
    jax.jit(jax.value_and_grad(weighed(f, key), (0, 1)))(params, state)
    for f in (applied, plainly)
  )
  assert worst(a, b) < 1e-12


@NAMES
def test_the_explicit_gradient_of_the_loss_is_that_of_autodiff(name, key):
  gradients = []
  for vjp in ("explicit", "step", "autodiff"):
    model, params, state, *block = make(name, key, vjp)
    f = weighed(lambda p, s, m=model, b=block: m.loss(p, s, *b), key)
    gradients.append(jax.jit(jax.value_and_grad(f, (0, 1)))(params, state))
  assert worst(gradients[0], gradients[2]) < 1e-12
  assert worst(gradients[1], gradients[2]) < 1e-12


@pytest.fixture(params=["table", "rows"])
def path(request, monkeypatch):
  """How E is read: a table of E W_x at any rate, or else for few words."""
  table = 1 if request.param == "rows" else model_module.TABLE
  monkeypatch.setattr(model_module, "TABLE", table)
  return request.param


def gradients_of(key, monkeypatch, steps):
  """Return both rules' gradients of a loss, and what the lowest layer read."""
  seen = []

  def spied(cell, layers, state, xs, **options):
    seen.append((layers[0].w_x.shape, xs.dtype))
    return unroll_stack(cell, layers, state, xs, **options)

  monkeypatch.setattr(model_module, "unroll_stack", spied)
  gradients = []
  for vjp in ("explicit", "autodiff"):
    model, params, state, *_ = make("lstm", key, vjp)
    tokens = jnp.full((steps + 1, B), 2).at[1].set(V - 1)  # rows in common

    def f(params, model=model, state=state, tokens=tokens):
      return model.loss(params, state, tokens[:-1], tokens[1:])

    gradients.append(jax.jit(jax.grad(weighed(f, key)))(params))
  return gradients, seen[0]


def test_both_ways_of_reading_tokens_have_the_gradient_of_autodiff(
  path, key, monkeypatch
):
  few = V // B  # steps whose tokens are fewer than V
  (explicit, autodiff), read = gradients_of(key, monkeypatch, few)
  rows = path == "rows"
  assert read == ((E if rows else V, 4 * H), jnp.float64 if rows else jnp.int64)
  assert worst(explicit, autodiff) < 1e-12
  assert np.abs(explicit.embedding[2]).max() > 1e-3
  assert not explicit.embedding[3].any()


def test_a_block_of_as_many_tokens_as_the_vocabulary_makes_the_table(
  key, monkeypatch
):
  monkeypatch.setattr(model_module, "TABLE", 1)
  enough = -(-V // B)
  _, read = gradients_of(key, monkeypatch, enough)
  assert read == ((V, 4 * H), jnp.int64)


@pytest.mark.parametrize("term", ["dw", "dx"])
def test_a_planted_error_in_reading_tokens_is_caught(
  term, path, key, monkeypatch
):
  """Rows of E are one `linear`, whose dW is E's gradient; the table another."""
  planted = plant(affine, term)
  monkeypatch.setattr(model_module, "linear", planted.linear)
  (explicit, autodiff), _ = gradients_of(key, monkeypatch, V // B)
  largest = np.abs(autodiff.embedding).max()
  wrong = worst(explicit.embedding, autodiff.embedding)
  noticed = {"table": "dx", "rows": "dw"}[path] == term
  assert (wrong > 5e-3 * largest) == noticed


def largest_array(compiled):
  """Return the numbers in the largest array that a program ever has."""
  shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
  return max(int(np.prod([int(n) for n in s.split(",")])) for s in shapes)


def test_no_array_of_all_logits_is_there_for_ten_thousand_words(key):
  steps, batch, words = 64, 32, 10_000
  logits = steps * batch * words
  found = {}
  for vjp in ("explicit", "autodiff"):
    config = ModelConfig(words, embedding_size=8, hidden_size=16)
    model = language_model(config, vjp=vjp)
    params = jax.eval_shape(model.init, key)
    state = jax.eval_shape(lambda m=model: m.initial_state((batch,)))
    tokens = jax.ShapeDtypeStruct((steps, batch), jnp.int32)
    gradient = jax.jit(jax.grad(model.training_loss, has_aux=True))
    compiled = gradient.lower(params, state, tokens, tokens, key).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    found[vjp] = largest_array(compiled), memory
  assert found["autodiff"][0] == logits  # the check sees it where it is
  assert found["autodiff"][1] > 4 * logits
  assert found["explicit"][0] < 0.3 * logits
  assert found["explicit"][1] < 4 * logits


def test_the_rows_of_many_words_are_added_up_by_one_scatter(key):
  model = language_model(ModelConfig(10_000, embedding_size=8, hidden_size=16))
  params = jax.eval_shape(model.init, key)
  state = jax.eval_shape(lambda: model.initial_state((B,)))
  tokens = jax.ShapeDtypeStruct((T, B), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  text = gradient.lower(params, state, tokens, tokens).as_text()
  assert len(re.findall(r'"stablehlo\.scatter"', text)) == 1
  assert "10000x8xf32" in text and "10000x64xf32" not in text  # no table


@NAMES
def test_the_state_returned_carries_on(name, key):
  model, params, state, tokens, targets = make(name, key)
  apply = jax.jit(model.apply)
  _, logits = apply(params, state, tokens)
  middle, first = apply(params, state, tokens[:2])
  _, rest = apply(params, middle, tokens[2:])
  assert worst(np.concatenate([first, rest]), logits) < 1e-12
  nats, _ = jax.jit(model.loss)(params, state, tokens, targets)
  assert abs(nats - cross_entropy(logits, targets).mean()) < 1e-12


def test_initial_weights_follow_the_configuration(key):
  shapes = {"embedding_size": 30, "hidden_size": 40, "vocabulary_size": 50}
  own = language_model(ModelConfig(**shapes)).init(key)
  assert abs(float(own.readout.std()) * 40**0.5 - 1) < 0.05
  assert float(own.layers[0].b.sum()) == 40  # the forget gate's
  config = ModelConfig(**shapes, init_std=0.1, readout_std=0.01)
  drawn = language_model(config).init(key)
  (layer,) = drawn.layers
  for leaf in (drawn.embedding, layer.w_x, layer.w_h):
    assert abs(float(leaf.std()) / 0.1 - 1) < 0.05
  assert abs(float(drawn.readout.std()) / 0.01 - 1) < 0.05
  assert not layer.b.any()
  assert not drawn.bias.any()


def tied_model(vjp="explicit"):
  return language_model(
    ModelConfig(V, embedding_size=7, hidden_size=7, tied=True, dtype=float),
    regularizers=Regularizers(token_dropout=0.4),
    vjp=vjp,
  )


def test_a_tied_readout_is_the_embedding(path, key):
  params = normal_like(key, tied_model().init(key))
  assert params.readout is None
  shape = ModelConfig(V, embedding_size=7, hidden_size=7, dtype=float)
  apart = language_model(shape, regularizers=Regularizers(token_dropout=0.4))
  state = apart.initial_state((B,))
  steps = V // B if path == "rows" else T
  tokens = jax.random.randint(key, (steps + 1, B), 0, V)

  def as_two(e):  # the same embedding, read in and out by a model of two
    both = params._replace(embedding=7**0.5 * e, readout=e.T)
    return apart.training_loss(both, state, tokens[:-1], tokens[1:], key)[0]

  def tied(e, vjp):
    of = tied_model(vjp).training_loss
    one = params._replace(embedding=e)
    return of(one, state, tokens[:-1], tokens[1:], key)[0]

  expected = jax.value_and_grad(as_two)(params.embedding)
  for vjp in ("explicit", "step", "autodiff"):
    found = jax.value_and_grad(tied)(params.embedding, vjp)
    assert worst(found, expected) < 1e-12
  drawn = tied_model().init(key).embedding
  assert abs(float(drawn.std()) * 7**0.5 - 1) < 0.3  # as a readout is


def test_a_tied_readout_of_another_size_is_refused(key):
  model = language_model(
    ModelConfig(V, embedding_size=6, hidden_size=7, tied=True)
  )
  with pytest.raises(ValueError, match="top layer's outputs, 7, got 6"):
    model.init(key)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"vocabulary_size": 0}, "vocabulary_size must be ≥ 1, got 0"),
    ({"vocabulary_size": 5, "num_layers": 0}, "num_layers must be ≥ 1"),
    ({"vocabulary_size": 5, "init_std": -1.0}, "init_std must be ≥ 0, got -1"),
  ],
)
def test_a_configuration_out_of_range_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    ModelConfig(**options)


def test_the_held_out_loss_is_that_of_one_pass_over_every_token(
  key, monkeypatch
):
  model, params, _, _, _ = make("lstm", key)
  tokens = np.asarray(jax.random.randint(key, (24,), 0, V), np.int32)
  zero = model.initial_state(())
  expected, _ = model.loss(params, zero, tokens[:-1], tokens[1:])
  monkeypatch.setattr("lstm_jax.language.evaluate.CHUNK", 7)
  assert abs(stateful_loss(model, params, tokens) - float(expected)) < 1e-12
  with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
    stateful_loss(model, params, tokens[:1])
