import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Autodiff,
  Explicit,
  Step,
  layernorm_lstm,
  lru,
  lstm,
  unroll_stack,
)
from lstm_jax.language import (
  ModelConfig,
  Regularizers,
  cross_entropy,
  language_model,
  stateful_loss,
)
from tests.compiling import count_programs
from tests.contract import NAMES, TABLE
from tests.draws import H, T, weighed, worst
from tests.language.small_model import V, make


@pytest.mark.everyday(1)
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


@pytest.mark.everyday(1)
@NAMES
def test_the_explicit_gradient_of_the_loss_is_that_of_autodiff(name, key):
  gradients = []
  for adjoint in (Explicit(), Step(), Autodiff()):
    model, params, state, *batch = make(name, key, adjoint)
    f = weighed(lambda p, s, m=model, b=batch: m.loss(p, s, *b), key)
    gradients.append(jax.jit(jax.value_and_grad(f, (0, 1)))(params, state))
  assert worst(gradients[0], gradients[2]) < 1e-12
  assert worst(gradients[1], gradients[2]) < 1e-12


def largest_array(compiled):
  """Return the number of elements in the largest array of a program."""
  shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
  return max(int(np.prod([int(n) for n in s.split(",")])) for s in shapes)


@pytest.mark.exhaustive
def test_no_array_of_all_logits_is_stored_for_ten_thousand_words(key):
  steps, batch, words = 64, 32, 10_000
  logits = steps * batch * words
  largest = {}
  for adjoint in (Explicit(), Autodiff()):
    config = ModelConfig(embedding_size=8, hidden_size=16)
    model = language_model(config, words, adjoint=adjoint)
    params = jax.eval_shape(model.init, key)
    state = jax.eval_shape(lambda m=model: m.initial_state((batch,)))
    tokens = jax.ShapeDtypeStruct((steps, batch), jnp.int32)
    gradient = jax.jit(jax.grad(model.training_loss, has_aux=True))
    compiled = gradient.lower(params, state, tokens, tokens, key).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    largest[adjoint] = largest_array(compiled), memory
  assert largest[Autodiff()][0] == logits  # autodiff stores it
  assert largest[Autodiff()][1] > 4 * logits  # bytes of all logits in float32
  assert largest[Explicit()][0] < 0.3 * logits
  assert largest[Explicit()][1] < 4 * logits


@pytest.mark.exhaustive
def test_gaussian_initial_weights_leave_decays_and_gains_unchanged(key):
  config = ModelConfig(lru, hidden_size=H, init_std=0.1)
  (layer,) = language_model(config, V).init(key).layers
  assert len(set(layer.nu.tolist())) == H
  (own,) = language_model(replace(config, init_std=None), V).init(key).layers
  assert (layer.nu == own.nu).all()
  assert not layer.b.any()
  config = ModelConfig(layernorm_lstm, hidden_size=H, init_std=0.1)
  (layer,) = language_model(config, V).init(key).layers
  for gain in (layer.gain_x, layer.gain_h, layer.gain_c):
    assert (gain == 1).all()


@pytest.mark.everyday(1)
@NAMES
def test_the_returned_state_continues_the_sequence(name, key):
  model, params, state, tokens, targets = make(name, key)
  apply = jax.jit(model.apply)
  _, logits = apply(params, state, tokens)
  middle, first = apply(params, state, tokens[:2])
  _, rest = apply(params, middle, tokens[2:])
  assert worst(np.concatenate([first, rest]), logits) < 1e-12
  nats, _ = jax.jit(model.loss)(params, state, tokens, targets)
  assert abs(nats - cross_entropy(logits, targets).mean()) < 1e-12


def test_initial_weights_follow_the_configuration(key):
  shapes = {"embedding_size": 30, "hidden_size": 40}
  own = language_model(ModelConfig(**shapes), 50).init(key)
  assert abs(float(own.readout.std()) * 40**0.5 - 1) < 0.05
  assert abs(float(own.embedding.std()) - 1) < 0.05
  draws = own.embedding.ravel()[:9], own.readout.ravel()[:9] * 40**0.5
  assert abs(np.subtract(*draws)).min() > 1e-3  # each by a key of its own
  assert float(own.layers[0].b.sum()) == 40  # 1 for each unit's forget gate
  config = ModelConfig(**shapes, init_std=0.1, readout_std=0.01)
  drawn = language_model(config, 50).init(key)
  (layer,) = drawn.layers
  for leaf in (drawn.embedding, layer.w_x, layer.w_h):
    assert abs(float(leaf.std()) / 0.1 - 1) < 0.05
  assert abs(float(drawn.readout.std()) / 0.01 - 1) < 0.05
  matrices = drawn.embedding, layer.w_x, layer.w_h
  assert len({float(leaf[0, 0]) for leaf in matrices}) == 3
  assert not layer.b.any()
  assert not drawn.bias.any()
  none = replace(config, init_std=0.0, readout_std=0.0)
  zeros = language_model(none, 50).init(key)
  assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_layers": 0}, r"num_layers must be in \[1, inf\), got 0"),
    ({"init_std": -1.0}, r"init_std must be in \[0, inf\), got -1"),
    ({"cell": "lstm"}, "cell must be lstm, gru or another .*, got str, which"),
    ({"cell": (lstm, lstm)}, "cell must be lstm, .*, got tuple, which has no"),
  ],
)
def test_a_configuration_out_of_range_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    ModelConfig(**options)


@pytest.mark.parametrize("adjoint", [Explicit(), Autodiff()], ids=str)
def test_tokens_and_targets_may_be_lists(adjoint, key):
  model, params, state, tokens, targets = make("lstm", key, adjoint)
  lists = tokens.tolist(), targets.tolist()
  for f, arrays in (
    (model.apply, (tokens,)),
    (model.loss, (tokens, targets)),
    (model.training_loss, (tokens, targets, key)),
  ):
    inputs = *lists[: len(arrays)], *arrays[2:]
    expected = f(params, state, *arrays)
    assert worst(f(params, state, *inputs), expected) == 0


@pytest.mark.parametrize("size", [2, 9])
def test_tokens_that_are_no_integers_are_refused(size, key):
  """Even floats [T, V], which the table W_e W_x could be multiplied by.

  With a vocabulary of 2, two tokens read the table; with one of 9, rows of W_e.
  """
  config = ModelConfig(hidden_size=4)
  model = language_model(config, size)
  dropout = Regularizers(token_dropout=0.5)
  regularized = language_model(config, size, regularizers=dropout)
  params = jax.eval_shape(model.init, key)
  targets = jnp.zeros((2, 1), int)
  for tokens, got in (
    (jnp.zeros((2, 1), jnp.float32), r"float32 \(2, 1\)"),
    (jnp.zeros((2, size)), rf"float64 \(2, {size}\)"),
    (jnp.zeros((2, 1), bool), r"bool \(2, 1\)"),
    (jnp.zeros((), int), r"int64 \(\)"),
    (None, "NoneType"),
  ):
    message = rf"^tokens must be integers \[T, \.\.\.\], got {got}"
    for f, arguments in (
      (model.apply, (tokens,)),
      (model.loss, (tokens, targets)),
      (model.training_loss, (tokens, targets, key)),
      (regularized.training_loss, (tokens, targets, key)),
    ):
      with pytest.raises(ValueError, match=message):
        jax.eval_shape(f, params, None, *arguments)


@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", [Explicit(), Step(), Autodiff()], ids=str)
def test_an_empty_batch_has_no_loss_and_a_gradient_of_zero(adjoint, key):
  model, params, *_ = make("lstm", key, adjoint)
  state, tokens = model.initial_state((0,)), jnp.zeros((T, 0), int)
  _, logits = jax.jit(model.apply)(params, state, tokens)
  assert logits.shape == (T, 0, V)
  assert jnp.isnan(jax.jit(model.loss)(params, state, tokens, tokens)[0])
  gradient_of = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
  (value, _), gradient = gradient_of(params, state, tokens, tokens)
  assert jnp.isnan(value)
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_the_vocabulary_size_and_groups_are_integers_of_at_least_1():
  for size, text in ((0, "0"), (9.0, "9.0"), ("9", "'9'")):
    message = f"vocabulary_size must be an integer ≥ 1, got {text}$"
    with pytest.raises(ValueError, match=message):
      language_model(ModelConfig(), size)
    message = f"groups must be an integer ≥ 1, got {text}$"
    with pytest.raises(ValueError, match=message):
      language_model(ModelConfig(), 9, groups=size)


def test_a_vocabulary_size_and_groups_in_int8_do_not_overflow(key):
  tokens = jax.ShapeDtypeStruct((50, 4), jnp.int32)  # 200 tokens
  model = language_model(
    ModelConfig(hidden_size=33), np.int8(100), groups=np.int8(2)
  )
  params = jax.eval_shape(model.init, key)
  nats, _ = jax.eval_shape(model.loss, params, None, tokens, tokens)
  # The embedding size is 64 by default.
  assert params.embedding.shape == (100, 64) and nats.shape == ()


@pytest.mark.exhaustive
def test_regularizers_need_a_key(key):
  regularizers = Regularizers(ar_coef=2.0)
  config = ModelConfig(hidden_size=4)
  model = language_model(config, 9, regularizers=regularizers)
  tokens = jnp.zeros((2, 1), int)
  with pytest.raises(ValueError, match="regularizers needs a key, got None"):
    model.training_loss(
      model.init(key), model.initial_state((1,)), tokens, tokens, None
    )


def test_equal_configurations_give_the_same_functions(key):
  def config(hidden_size=5):
    return ModelConfig(lstm, 3, hidden_size, compute_dtype=jnp.bfloat16)

  model = language_model(config(), 9)
  assert language_model(config(), 9) is model
  assert language_model(config(), 9, regularizers=None, groups=1) is model
  assert language_model(config(), vocabulary_size=9) is model
  for other in (
    language_model(config(6), 9),
    language_model(config(), 10),
    language_model(config(), 9, adjoint=Step()),
    language_model(config(), 9, groups=2),
    language_model(config(), 9, regularizers=Regularizers()),
  ):
    assert other.loss is not model.loss


@pytest.mark.exhaustive
def test_an_equal_model_is_not_compiled_again(key):
  compiled = []

  def trained():
    config = ModelConfig(embedding_size=3, hidden_size=5)
    model = language_model(config, 9, regularizers=Regularizers(ar_coef=1.0))
    tokens = jnp.arange(12).reshape(6, 2) % 9
    batch = model.initial_state((2,)), tokens, tokens, key
    params = model.init(key)
    with count_programs() as programs:
      loss = jax.jit(model.training_loss)(params, *batch)
    compiled.append(len(programs))
    return loss

  first, again = trained(), trained()
  assert compiled[0] > 0 and compiled[1] == 0
  assert worst(first, again) == 0


def test_stateful_loss_is_the_loss_of_one_pass_over_the_text(key, monkeypatch):
  model, params, _, _, _ = make("lstm", key)
  tokens = np.asarray(jax.random.randint(key, (24,), 0, V), np.int32)
  zero = model.initial_state(())
  expected, _ = model.loss(params, zero, tokens[:-1], tokens[1:])
  # The text is then read in four chunks, with the state carried between them.
  monkeypatch.setattr("lstm_jax.language.evaluate.CHUNK", 7)
  assert abs(stateful_loss(model, params, tokens) - float(expected)) < 1e-12
  with pytest.raises(ValueError, match=r"at least 2 tokens, \[N\], got 1"):
    stateful_loss(model, params, tokens[:1])
