"""Kinds of Keras layers, with the cell and the arrays of each."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Directions, gru, gru_reset_before, lstm, rnn
from lstm_jax.cells import RELU, make_hard_sigmoid
from tests.draws import D, H, normal_like

HARD = make_hard_sigmoid(1 / 6)  # the hard sigmoid of Keras 3
OPTIONS = {  # of a Keras layer, and our cell
  "LSTM": ({}, lstm),
  "LSTM hard": (
    {"recurrent_activation": "hard_sigmoid", "activation": "relu"},
    lstm.with_activations(HARD, RELU, RELU),
  ),
  "GRU": ({}, gru),
  "GRU before": ({"reset_after": False}, gru_reset_before),
  "GRU before hard": (
    {"reset_after": False, "recurrent_activation": "hard_sigmoid"},
    gru_reset_before.with_activations(HARD),
  ),
  "SimpleRNN": ({}, rnn),
  "SimpleRNN relu": ({"activation": "relu"}, rnn.with_activation(RELU)),
}
EACH = pytest.mark.parametrize("kind", OPTIONS)
SIDES = pytest.mark.parametrize("both", [False, True], ids=["one", "both"])


def module_of(kind):
  """Return the cell of a kind, with the standard activations."""
  cell = OPTIONS[kind][1]
  return cell if hasattr(cell, "__file__") else cell.module


def draw(key, kind, both=False, size=D):
  """Return random params of a kind of layer, for inputs of this size."""
  params = module_of(kind).init(key, size, H, jnp.float64)
  params = Directions(params, params) if both else params
  return jax.tree.map(lambda x: x / 2, normal_like(key, params))


def from_options(kind):
  """Return the arguments of `from_keras` that a kind of layer needs."""
  return OPTIONS[kind][0]
