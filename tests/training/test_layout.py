"""How the weights, their moments and their average are laid out on a mesh."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from lstm_jax.language import LanguageParams
from lstm_jax.training import (
  TrainState,
  init_state,
  make_mesh,
  state_shardings,
)
from lstm_jax.training.averaging import Average
from tests.training.small import MODEL


def first_rows():
  """Return an optimizer that keeps the first row of each weight."""

  def init(params):
    return optax.TraceState(jax.tree.map(lambda w: w[:1], params))

  return optax.GradientTransformation(init, lambda *args: args[:2])


def matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def each_array(tree, shardings):
  return zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)


@pytest.mark.parametrize(
  "optimizer",
  [
    optax.adafactor(1e-3, min_dim_size_to_factor=2),
    optax.masked(optax.adam(1e-3), matrices),
    # For the embedding and the readout, not for the layers and the bias.
    optax.masked(optax.adam(1e-3), LanguageParams(True, False, True, False)),
    optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    first_rows(),
    optax.sm3(1e-3),
    optax.scale_by_adam(),  # in no chain
    # Its state is the weights; `update` is not called.
    optax.GradientTransformation(lambda params: params, None),
    optax.flatten(optax.adam(1e-3)),
    optax.multi_transform(
      {"slow": optax.adam(1e-3), "fast": optax.adam(1e-2)},
      lambda params: params._replace(
        embedding="slow", layers="fast", readout="slow", bias="slow"
      ),
    ),
  ],
  ids=[
    "factored",
    "mask",
    "parts",
    "inject",
    "rows",
    "sm3",
    "unchained",
    "weights",
    "flat",
    "labels",
  ],
)
def test_moments_are_placed_as_weights_of_their_shape(optimizer, key):
  mesh = make_mesh({"data": 1})
  make = partial(init_state, MODEL, optimizer, batch_size=3)
  params = jax.eval_shape(MODEL.init, key)
  state = jax.eval_shape(lambda params: make(params=params), params)
  shardings = state_shardings(mesh, state)
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  of_shape = {leaf.shape: s for leaf, s in each_array(params, shardings.params)}
  for leaf, found in each_array(state.opt_state, shardings.opt_state):
    expected = of_shape.get(leaf.shape, shardings.step)
    assert found.spec == expected.spec
    found.shard_shape(leaf.shape)  # which raises for a layout with more axes
  averaged = state._replace(average=Average(params, state.step))
  found = state_shardings(mesh, averaged).average
  assert found == Average(shardings.params, shardings.step)
  found = state_shardings(mesh, state._replace(opt_state={"number": 0}))
  assert found.opt_state == {"number": shardings.step}


class ListParams(NamedTuple):
  """The weights of a user's cell, some of them in a list."""

  w_h: Any
  others: Any


def test_weights_in_a_list_and_their_moments_are_replicated():
  optimizer = optax.adam(1e-3)
  layer = ListParams(np.zeros((4, 4)), [np.zeros((4, 4)), np.zeros(4)])
  params = LanguageParams(np.zeros((5, 4)), (layer,), None, np.zeros(5))
  state = TrainState(np.zeros(()), params, None, optimizer.init(params), ())
  shardings = state_shardings(make_mesh({"data": 1}), state)
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  for tree in (shardings.params, shardings.opt_state[0].mu):
    (found,) = tree.layers
    assert found.w_h.spec == PartitionSpec("model", None)
    assert [s.spec for s in found.others] == [PartitionSpec(), PartitionSpec()]
