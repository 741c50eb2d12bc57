"""The embedding of a language model: its gradient, and the tied readout."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, Step, lstm, unroll_stack
from lstm_jax.cells import affine
from lstm_jax.language import ModelConfig, Regularizers, language_model
from lstm_jax.language import model as model_module
from lstm_jax.testing.mutation import plant
from tests.draws import B, H, T, normal_like, weighed, worst
from tests.language.small_model import E, V, make

# Time steps with fewer than V tokens, and with as many or more.
STEPS = {"rows": V // B, "table": -(-V // B)}


@pytest.fixture(params=["table", "rows"])
def lookup(request, monkeypatch):
  """Return what a batch of STEPS[lookup] time steps looks up.

  These are rows of the table W_e W_x, or rows of W_e, which are multiplied by
  W_x afterwards: see `lstm_jax.language.model`. With this TABLE_ROWS, `apply`
  looks up the same for a single time step.
  """
  table_rows = 1 if request.param == "rows" else model_module.TABLE_ROWS
  monkeypatch.setattr(model_module, "TABLE_ROWS", table_rows)
  return request.param


def gradients_of(key, monkeypatch, steps):
  """Return (gradients by `Explicit` and by `Autodiff`, (w_x.shape, xs.dtype)).

  The shape and the dtype are those of the lowest layer.
  """
  inputs = []

  def spy(cell, layers, state, xs, **options):
    inputs.append((layers[0].w_x.shape, xs.dtype))
    return unroll_stack(cell, layers, state, xs, **options)

  monkeypatch.setattr(model_module, "unroll_stack", spy)
  gradients = []
  for adjoint in (Explicit(), Autodiff()):
    model, params, state, *_ = make("lstm", key, adjoint)
    # Only the tokens 2 and V − 1 occur, each several times.
    tokens = jnp.full((steps + 1, B), 2).at[1].set(V - 1)

    def f(params, model=model, state=state, tokens=tokens):
      return model.loss(params, state, tokens[:-1], tokens[1:])

    gradients.append(jax.jit(jax.grad(weighed(f, key)))(params))
  return gradients, inputs[0]


@pytest.mark.everyday(1)
def test_the_table_and_rows_of_w_e_have_the_gradient_of_autodiff(
  lookup, key, monkeypatch
):
  steps = STEPS[lookup]
  (explicit, autodiff), inputs = gradients_of(key, monkeypatch, steps)
  rows = lookup == "rows"
  assert inputs == (
    (E if rows else V, 4 * H),
    jnp.float64 if rows else jnp.int64,
  )
  assert worst(explicit, autodiff) < 1e-12
  assert np.abs(explicit.embedding[2]).max() > 1e-3
  assert not explicit.embedding[3].any()  # a token that does not occur


@pytest.mark.exhaustive
@pytest.mark.usefixtures("lookup")
def test_products_of_embeddings_and_w_x_are_not_rounded_to_bfloat16(key):
  """Products of bfloat16 weights are summed in float32, as in h W_h."""
  memories = []
  for dtype in (jnp.bfloat16, jnp.float32):
    config = ModelConfig(lstm, E, H, dtype=dtype)
    model = language_model(config, V)
    params = language_model(replace(config, dtype=jnp.bfloat16), V).init(key)
    params = jax.tree.map(lambda x, d=dtype: x.astype(d), params)
    # In float32, since the c that is compared has the dtype of this state.
    state = language_model(replace(config, dtype=jnp.float32), V).initial_state(
      (B,)
    )
    tokens = jnp.arange(B)[None]
    memories.append(model.apply(params, state, tokens)[0][0].c)
  found, expected = memories
  assert abs(found - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.parametrize(("steps", "size"), [(1, V), (2, E), (V // B + 1, V)])
def test_the_table_is_used_for_one_step_or_as_many_tokens_as_it_has_rows(
  steps, size, key, monkeypatch
):
  sizes = []

  def spy(cell, layers, state, xs, **options):
    sizes.append(len(layers[0].w_x))
    return unroll_stack(cell, layers, state, xs, **options)

  monkeypatch.setattr(model_module, "unroll_stack", spy)
  model, params, state, *_ = make("lstm", key)
  tokens = jnp.zeros((steps, B), int)

  def trace(f, *args):  # anew, if another test has traced f
    jax.eval_shape(lambda *args: f(*args), params, state, tokens, *args)

  trace(model.apply)
  # A loss of one time step would multiply all V rows at each training step.
  trace(model.loss, tokens)
  trace(model.training_loss, tokens, key)
  assert sizes == [size, *2 * [E if steps == 1 else size]]


def test_the_vocabulary_is_compared_with_the_tokens_of_one_group(
  key, monkeypatch
):
  found = []
  monkeypatch.setattr(
    model_module, "reads_table", lambda cell, *sizes: found.append(sizes)
  )
  config = ModelConfig(embedding_size=E, hidden_size=H, dtype=jnp.float64)
  model = language_model(config, V, groups=B)
  tokens = jnp.zeros((T, B), int)
  state = model.initial_state((B,))
  jax.eval_shape(model.loss, model.init(key), state, tokens, tokens)
  # (vocabulary, tokens): the T·B tokens of a batch are in B groups.
  assert found == [(V, T)]


@pytest.mark.everyday(2)
@pytest.mark.parametrize("term", ["dw_tokens", "dx"])
def test_a_planted_error_in_the_embedding_is_caught(
  term, lookup, key, monkeypatch
):
  """The gradient of W_e is a different term of `affine` in the two cases.

  It is `dw_tokens` where rows of W_e are looked up. With the table, it is `dx`
  of the product W_e W_x. An error in the other term leaves it right.
  """
  planted = plant(affine, term)
  monkeypatch.setattr(model_module, "linear", planted.linear)
  (explicit, autodiff), _ = gradients_of(key, monkeypatch, STEPS[lookup])
  largest = np.abs(autodiff.embedding).max()
  wrong = worst(explicit.embedding, autodiff.embedding)
  noticed = {"table": "dx", "rows": "dw_tokens"}[lookup] == term
  assert wrong > 5e-3 * largest if noticed else wrong < 1e-12


def test_the_gradient_of_a_large_embedding_is_one_scatter(key):
  model = language_model(ModelConfig(embedding_size=8, hidden_size=16), 10_000)
  params = jax.eval_shape(model.init, key)
  state = jax.eval_shape(lambda: model.initial_state((B,)))
  tokens = jax.ShapeDtypeStruct((T, B), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  text = gradient.lower(params, state, tokens, tokens).as_text()
  assert len(re.findall(r'"stablehlo\.scatter"', text)) == 1
  assert "10000x8xf32" in text and "10000x64xf32" not in text  # no table


def tied_model(adjoint=Explicit()):
  return language_model(
    ModelConfig(embedding_size=7, hidden_size=7, tied=True, dtype=float),
    V,
    regularizers=Regularizers(token_dropout=0.4),
    adjoint=adjoint,
  )


@pytest.mark.everyday(1)
def test_a_tied_readout_is_the_embedding(lookup, key):
  params = normal_like(key, tied_model().init(key))
  assert params.readout is None
  shape = ModelConfig(embedding_size=7, hidden_size=7, dtype=float)
  untied = language_model(
    shape, V, regularizers=Regularizers(token_dropout=0.4)
  )
  state = untied.initial_state((B,))
  tokens = jax.random.randint(key, (STEPS[lookup] + 1, B), 0, V)

  def untied_loss(e):  # with two matrices: W_e = √7 e [V, 7], and W = eᵀ
    untied_params = params._replace(embedding=7**0.5 * e, readout=e.T)
    return untied.training_loss(
      untied_params, state, tokens[:-1], tokens[1:], key
    )[0]

  def tied_loss(e, adjoint):
    model, tied_params = tied_model(adjoint), params._replace(embedding=e)
    batch = tokens[:-1], tokens[1:]
    return model.training_loss(tied_params, state, *batch, key)[0]

  expected = jax.jit(jax.value_and_grad(untied_loss))(params.embedding)
  gradient = jax.jit(jax.value_and_grad(tied_loss), static_argnums=1)
  for adjoint in (Explicit(), Step(), Autodiff()):
    found = gradient(params.embedding, adjoint)
    assert worst(found, expected) < 1e-12
  drawn = tied_model().init(key).embedding
  assert abs(float(drawn.std()) * 7**0.5 - 1) < 0.3  # initialized as a readout


def test_a_tied_readout_needs_an_embedding_of_the_size_of_the_outputs(key):
  model = language_model(
    ModelConfig(embedding_size=6, hidden_size=7, tied=True), V
  )
  with pytest.raises(ValueError, match="top layer's outputs, 7, got 6"):
    model.init(key)


def test_a_tied_embedding_has_the_deviation_of_the_readout(key):
  config = ModelConfig(
    embedding_size=40, hidden_size=40, tied=True, init_std=0.1, readout_std=0.01
  )
  params = language_model(config, 50).init(key)
  assert abs(float(params.embedding.std()) / 0.01 - 1) < 0.1
  assert abs(float(params.layers[0].w_h.std()) / 0.1 - 1) < 0.1
