import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, lstm, regularize, slstm, unroll_stack
from lstm_jax.language import Regularizers
from lstm_jax.language.readout import linear_cross_entropy
from tests.draws import B, H, T, worst
from tests.language.small_model import V, make

ALL = Regularizers(
  token_dropout=0.2,
  layer_dropout=0.3,
  output_dropout=0.4,
  weight_drop=0.3,
  zoneout_h=0.1,
  zoneout_c=0.2,
  state_reset=0.5,
  ar_coef=1.5,
  tar_coef=0.7,
)


@pytest.mark.exhaustive
def test_zoneout_keeps_c_n_and_m_of_an_slstm_together(key):
  regularizers = Regularizers(zoneout_h=0.3, zoneout_c=0.5)
  zero = slstm.initial_state(slstm.init(key, 4, H), (B,))
  (keep,) = regularizers.stack_options(key, (zero,), T)["zoneout"]
  assert 0 < keep.c.sum() < keep.c.size
  assert (keep.n == keep.c).all() and (keep.m == keep.c).all()
  assert (keep.h != keep.c).any()


@pytest.mark.everyday(1)
@pytest.mark.parametrize("cell", ["lstm", "slstm", "min_gru"])
def test_some_sequences_begin_at_the_zero_state(cell, key):
  model, params, state, *batch = make(
    cell, key, regularizers=Regularizers(state_reset=0.5)
  )
  key_reset = jax.random.split(key, 4)[3]  # as `training_loss` splits it
  is_reset = jax.random.bernoulli(key_reset, 0.5, (B,))
  assert 0 < is_reset.sum() < B
  _, (_, found) = model.training_loss(params, state, *batch, key)
  for expected, chosen in (
    (model.loss(params, model.initial_state((B,)), *batch)[1], is_reset),
    (model.loss(params, state, *batch)[1], ~is_reset),
  ):
    rows = [
      jax.tree.map(lambda s, c=chosen: s[c], x) for x in (found, expected)
    ]
    assert worst(*rows) < 1e-14


@pytest.mark.parametrize("batch", [(), (2, B)])
def test_each_sequence_of_any_batch_is_reset_as_a_whole(batch, key):
  zero = (lstm.initial_state(lstm.init(key, 4, H), batch),)
  one = jax.tree.map(jnp.ones_like, zero)
  seen = set()
  for k in jax.random.split(jax.random.key(0), 9):
    is_reset = jax.random.bernoulli(k, 0.5, batch)
    (found,) = Regularizers(state_reset=0.5).reset_states(k, one, zero)
    for leaf in found:
      assert (leaf == jnp.where(is_reset, 0, 1)[..., None]).all()
    seen |= {*is_reset.ravel().tolist()}
  assert seen == {False, True}


@pytest.mark.exhaustive
def test_the_state_before_a_reset_has_no_gradient(key):
  model, params, state, *batch = make(
    "lstm", key, regularizers=Regularizers(state_reset=0.5)
  )
  is_reset = jax.random.bernoulli(jax.random.split(key, 4)[3], 0.5, (B,))
  gradient = jax.grad(lambda s: model.training_loss(params, s, *batch, key)[0])(
    state
  )
  for leaf in jax.tree.leaves(gradient):
    assert not leaf[is_reset].any() and leaf[~is_reset].all()


@pytest.mark.parametrize("state_reset", [0.0, 0.5])
def test_a_state_of_none_is_the_zero_state(state_reset, key):
  model, params, _, *batch = make(
    "lstm", key, regularizers=Regularizers(state_reset=state_reset)
  )
  zero = model.initial_state((B,))
  found, expected = (
    model.training_loss(params, state, *batch, key) for state in (None, zero)
  )
  assert worst(found, expected) == 0


@pytest.mark.parametrize("batch_shape", [(), (1,), (B + 1,)])
def test_a_state_of_another_batch_is_refused(batch_shape, key):
  model, params, _, *batch = make(
    "gru", key, regularizers=Regularizers(state_reset=0.5)
  )
  state = model.initial_state(batch_shape)
  message = (
    rf"^states must have the shapes \(GRUState\(h=\({B}, {H}\)\), .*, got "
  )
  with pytest.raises(ValueError, match=message):
    model.training_loss(params, state, *batch, key)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_gradient_of_the_training_loss_is_that_of_autodiff(cell, key):
  gradients = []
  for adjoint in (Explicit(), Autodiff()):
    model, params, state, *batch = make(cell, key, adjoint, ALL)
    f = jax.value_and_grad(
      lambda p, s, m=model, b=batch: m.training_loss(p, s, *b, key)[0], (0, 1)
    )
    gradients.append(jax.jit(f)(params, state))
  assert worst(*gradients) < 1e-12


@pytest.mark.everyday(1)
@pytest.mark.parametrize("cell", ["min_gru", "min_lstm", "lru"])
def test_cells_without_w_h_have_no_weights_to_drop(cell, key):
  model, *args = make(cell, key, regularizers=Regularizers(weight_drop=0.5))
  found, _ = jax.jit(model.training_loss)(*args, key)
  expected, _ = jax.jit(make(cell, key)[0].training_loss)(*args, key)
  assert found == expected


def test_the_training_loss_without_regularizers_is_the_loss(key):
  expected = None
  for regularizers in (None, Regularizers()):
    model, *args = make("lstm", key, regularizers=regularizers)
    total, (nats, state) = model.training_loss(*args, key)
    expected = model.loss(*args) if expected is None else expected
    assert worst((nats, state), expected) == 0 and total == nats


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  "name", [field.name for field in dataclasses.fields(Regularizers)]
)
def test_each_regularizer_changes_the_training_loss_and_not_the_loss(name, key):
  model, *args = make("lstm", key, regularizers=Regularizers(**{name: 0.5}))
  plain, *_ = make("lstm", key)
  training_loss = jax.jit(model.training_loss)
  loss, expected = (jax.jit(m.loss)(*args) for m in (model, plain))
  total, (nats, _) = training_loss(*args, key)
  assert abs(total - expected[0]) > 1e-4
  # The two penalties are added to the total alone, and draw nothing.
  assert (nats == total) != (name in ("ar_coef", "tar_coef"))
  assert worst(loss, expected) == 0
  again, _ = training_loss(*args, key)
  other, _ = training_loss(*args, jax.random.key(1))
  assert again == total
  assert (other == total) == (name in ("ar_coef", "tar_coef"))


def test_the_training_loss_is_that_of_its_parts():
  """Masks are drawn by the keys of `training_loss`, and applied one by one.

  The rates and coefficients are those of ALL.
  """
  # The four keys split from this one draw different resets (checked below), so
  # that a reset drawn from a wrong one of them is noticed.
  key = jax.random.key(1)
  model, params, state, tokens, targets = make("lstm", key, regularizers=ALL)
  total, (nats, last) = model.training_loss(params, state, tokens, targets, key)
  key_weights, key_stack, key_outputs, _ = jax.random.split(key, 4)
  key_tokens, key_layers = jax.random.split(key_weights)
  rows = regularize.factors(key_tokens, (V, 1), 0.2, float)
  xs = (params.embedding * rows)[tokens]
  layers = tuple(
    regularize.drop_connect(k, layer, 0.3)
    for k, layer in zip(
      jax.random.split(key_layers, 2), params.layers, strict=True
    )
  )
  *others, is_reset = (
    jax.random.bernoulli(k, 0.5, (B,)) for k in jax.random.split(key, 4)
  )
  assert 0 < is_reset.sum() < B
  assert all((is_reset != other).any() for other in others)
  state = jax.tree.map(lambda s: s.at[is_reset].set(0), state)
  key_drop, *keys = jax.random.split(key_stack, 3)
  zoneout = tuple(
    regularize.zoneout(k, s, T, lstm.LSTMState(0.1, 0.2))
    for k, s in zip(keys, state, strict=True)
  )
  expected, hs = unroll_stack(
    lstm,
    layers,
    state,
    xs,
    dropout=0.3,
    locked=True,
    key=key_drop,
    zoneout=zoneout,
    adjoint=Autodiff(),
  )
  dropped_hs = regularize.locked_dropout(key_outputs, hs, 0.4)
  expected_nats = linear_cross_entropy(
    dropped_hs, params.readout, params.bias, targets
  )
  assert worst((nats, last), (expected_nats, expected)) < 1e-12
  penalty = (
    1.5 * (dropped_hs**2).mean() + 0.7 * (np.diff(hs, axis=0) ** 2).mean()
  )
  assert abs(total - expected_nats - penalty) < 1e-12


def test_penalties_of_one_time_step_and_of_16_bits(key):
  regularizers = Regularizers(ar_coef=1.5, tar_coef=0.7)
  hs = jax.random.normal(key, (T, B, H)).astype(jnp.bfloat16)
  wide = hs.astype(jnp.float32)
  found = regularizers.penalty(hs, hs)
  assert found == regularizers.penalty(wide, wide)
  assert found.dtype == jnp.float32
  wide = wide[:1]  # one time step: there is no change for TAR to penalize
  expected = Regularizers(ar_coef=1.5).penalty(wide, wide)
  assert regularizers.penalty(wide, wide) == expected > 0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"weight_drop": 1.0}, r"weight_drop must be in \[0, 1\), got 1.0"),
    ({"zoneout_c": -0.1}, r"zoneout_c must be in \[0, 1\), got -0.1"),
    ({"state_reset": 1.1}, r"state_reset must be in \[0, 1\], got 1.1"),
    ({"tar_coef": float("inf")}, r"tar_coef must be in \[0, inf\), got inf"),
    ({"ar_coef": float("nan")}, r"ar_coef must be in \[0, inf\), got n"),
  ],
)
def test_a_rate_or_coefficient_out_of_range_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Regularizers(**options)
