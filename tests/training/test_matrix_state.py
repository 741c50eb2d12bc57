"""Training of a cell whose state has a matrix for each sequence.

  m ← 0.9 m + k vᵀ        h = mᵀ q,   q, k, v of the input alone

It is a linear transformer's memory (Katharopoulos et al. 2020) that decays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.trainer.checkpoint import carried_batch_size
from lstm_jax import Autodiff, unroll
from lstm_jax.cells.cell import one_step
from lstm_jax.language import (
  BatchingConfig,
  ModelConfig,
  Regularizers,
  language_model,
)
from lstm_jax.sequence import regularize
from lstm_jax.training import (
  OptimizerConfig,
  TrainState,
  init_state,
  make_optimizer,
  make_train_step,
  train,
  zero_carry,
)
from tests.draws import worst
from tests.sequence.test_other_cells import CellOfFunctions

V, H = 7, 4


class MatrixParams(NamedTuple):
  w_x: jax.Array  # [D, 3H]


class MatrixState(NamedTuple):
  m: jax.Array  # [..., H, H]
  h: jax.Array  # [..., H]


def init(key, input_size, hidden_size, dtype=jnp.float32):
  shape = input_size, 3 * hidden_size
  return MatrixParams(0.1 * jax.random.normal(key, shape, dtype))


def initial_state(params, batch_shape=()):
  h = jnp.zeros((*batch_shape, params.w_x.shape[1] // 3), params.w_x.dtype)
  return MatrixState(jnp.zeros((*h.shape, h.shape[-1]), h.dtype), h)


def project(params, x):
  return x @ params.w_x


def recur(params, state, ax):
  q, k, v = jnp.split(ax, 3, axis=-1)
  m = 0.9 * state.m + k[..., :, None] * v[..., None, :]
  # No backward reads the second result; its shape must be that of ax.
  return MatrixState(m, jnp.einsum("...k,...kv->...v", q, m)), ax, ()


parts = project, recur, None, None  # without a backward: for Autodiff()
forward, backward, step = one_step(initial_state, *parts)
cell = CellOfFunctions(
  init, initial_state, *parts, forward, backward, step, takes_tokens=False
)


def zero_states(*batch_shape):
  """Return the zero state of a model of one layer."""
  params = MatrixParams(jnp.zeros((1, 3 * H)))
  return (initial_state(params, batch_shape),)


@pytest.mark.exhaustive
def test_zoneout_keeps_elements_of_the_matrix(key):
  params = init(key, 3, H)
  xs = jax.random.normal(key, (6, 2, 3))
  (state,) = zero_states(2)
  keep = regularize.zoneout(key, state, 6, MatrixState(0.3, 0.4))
  last, _ = unroll(cell, params, state, xs, zoneout=keep, adjoint=Autodiff())
  for t, x in enumerate(xs):
    after = forward(params, state, x)[0]
    kept = jax.tree.map(lambda k, t=t: k[t], keep)
    state = jax.tree.map(jnp.where, kept, state, after)
  assert worst(last, state) < 1e-6
  assert 0 < keep.m.mean() < 1


@pytest.mark.parametrize("members", [(), (2,)])
def test_a_state_of_zeros_has_the_batch_size_that_it_is_given(members):
  found = zero_carry(zero_states(*members, 3), 5)
  expected = zero_states(*members, 5)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)


def test_a_state_in_a_tree_of_any_kind_keeps_its_kind():
  (before,), (after,) = zero_states(3), zero_states(5)
  for make in (
    lambda state: [state],
    lambda state: {"layer": state},
    lambda state: state,
    lambda state: (state.h,),
  ):
    ones = jax.tree.map(jnp.ones_like, make(before))
    found, expected = zero_carry(ones, 5), make(after)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found))


def test_a_state_of_zeros_has_the_dtypes_of_the_other():
  before = {"a": jnp.ones((3, H), jnp.bfloat16), "b": jnp.ones((3, H), float)}
  found = jax.tree.map(jnp.result_type, zero_carry(before, 5))
  assert found == {"a": jnp.dtype("bfloat16"), "b": jnp.dtype("float64")}


def test_the_batch_size_of_a_state_is_not_its_number_of_members():
  state = TrainState(0, None, None, None, zero_states(2, 3))
  assert carried_batch_size(state) == 3


@pytest.mark.exhaustive
def test_each_epoch_begins_at_the_zero_state_of_its_batch_size(key):
  config = ModelConfig(cell, embedding_size=3, hidden_size=H)
  model = language_model(config, V, adjoint=Autodiff())
  params = model.init(key)
  # B is 3, and 5 in the last epoch; T is 4. Of 46 targets, the epochs make 4, 4
  # and 3 batches: 11 steps.
  batching = BatchingConfig(3, 4, num_epochs=3, late_batch_size=5)
  # So small a learning rate leaves the weights as they are.
  rule = make_optimizer(OptimizerConfig(learning_rate=1e-30), 11)
  epochs = list(batching.epochs(np.arange(47) % V, 0))
  start = init_state(model, rule, params, 3)
  update = make_train_step(model, rule)
  found = [float(m.loss) for _, m in train(update, start, epochs)]
  loss, expected = jax.jit(model.loss), []
  for epoch in epochs:
    carry = model.initial_state(epoch.tokens.shape[1:])
    for batch in epoch.batches():
      nats, carry = loss(params, carry, *batch)
      expected.append(float(nats))
  assert np.allclose(found, expected, rtol=0, atol=1e-6)


def test_some_sequences_begin_at_the_zero_state(key):
  regularizers = Regularizers(state_reset=0.5)
  zero = zero_states(6)
  states = jax.tree.map(jnp.ones_like, zero)
  found = regularizers.reset_states(key, states, zero)
  is_reset = jax.random.bernoulli(key, 0.5, (6,))
  assert 0 < is_reset.sum() < 6
  for leaf in jax.tree.leaves(found):
    assert not leaf[is_reset].any() and leaf[~is_reset].all()
