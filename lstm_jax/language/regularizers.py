"""Regularization of a language model's training loss: dropout and penalties.

  token_dropout   drops rows of W_e: a token, wherever it occurs in the batch
  layer_dropout   drops units between layers, the same ones at every time step
  output_dropout  drops units of the top layer's h, the same at every time step
  weight_drop     drops weights of every w_h, where a cell has one
  zoneout_h, _c   keeps the previous h or c of units of every layer, drawn at
                  each time step; an sLSTM keeps n and m of a unit with its c
  state_reset     replaces the state carried over from the batch before by the
                  zero state, as at the start of a text, for some sequences
  ar_coef         α in α · mean(ĥ²), with ĥ the top layer's h after dropout (AR)
  tar_coef        β in β · mean((hₜ − hₜ₋₁)²), with h before dropout (TAR)

All masks are drawn anew for each batch. What dropout and weight_drop keep is
divided by 1 − rate (`sequence.regularize`). With rates and coefficients of 0
the training loss is the model's loss.

References:
  Merity, Keskar and Socher (2018), Regularizing and optimizing LSTM language
  models (all but zoneout and state_reset); Krueger et al. (2017), Zoneout; Gal
  and Ghahramani (2016), locked dropout; google-deepmind/lamb (2018),
  drop_state_probability, which is state_reset.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import State
from lstm_jax.cells.checks import check_rows
from lstm_jax.cells.precision import upcast
from lstm_jax.cells.slstm import SLSTMState
from lstm_jax.language.options import check_options, option
from lstm_jax.sequence import regularize
from lstm_jax.sequence.wrappers import select


@dataclasses.dataclass(frozen=True)
class Regularizers:
  """Rates of dropout and zoneout, and coefficients of two penalties.

  They apply to `training_loss` alone. Evaluation and sampling have no noise,
  and do not use the expected update of zoneout, unlike Krueger et al. (2017).

  Raises:
    ValueError: a rate or a coefficient is out of its range.
  """

  token_dropout: float = option(
    0.0,
    "Probability of dropping a token: its embedding is 0 wherever it occurs in "
    "a batch.",
    bounds="[0, 1)",
  )
  layer_dropout: float = option(
    0.0,
    "Dropout rate of the outputs between layers, with one mask for all time "
    "steps of a batch.",
    bounds="[0, 1)",
  )
  output_dropout: float = option(
    0.0,
    "Dropout rate of the top layer's outputs before the readout, with one mask "
    "for all time steps of a batch.",
    bounds="[0, 1)",
  )
  weight_drop: float = option(
    0.0,
    "Probability of dropping a recurrent weight (DropConnect on w_h), in cells "
    "that have such weights.",
    bounds="[0, 1)",
  )
  zoneout_h: float = option(
    0.0,
    "Probability that a unit keeps its previous h at a time step (zoneout).",
    bounds="[0, 1)",
  )
  zoneout_c: float = option(
    0.0,
    "Probability that a unit keeps its previous c at a time step (zoneout).",
    bounds="[0, 1)",
  )
  state_reset: float = option(
    0.0,
    "Probability, for each sequence and batch, that the state carried over "
    "from the batch before is replaced by the zero state, as at the start of "
    "a text.",
    bounds="[0, 1]",
  )
  ar_coef: float = option(
    0.0,
    "Coefficient of activation regularization (AR), the mean square of the top "
    "layer's outputs after dropout, which is added to the loss.",
    bounds="[0, inf)",
  )
  tar_coef: float = option(
    0.0,
    "Coefficient of temporal activation regularization (TAR), the mean square "
    "of the change of the top layer's outputs from one time step to the next, "
    "which is added to the loss.",
    bounds="[0, inf)",
  )

  def __post_init__(self):
    check_options(self)

  def reset_states(
    self, key: jax.Array, states: tuple[State, ...], zero: tuple[State, ...]
  ) -> tuple[State, ...]:
    """Apply state_reset: return states, with zero for some of the sequences.

    Args:
      key: a typed PRNG key.
      states: the layers' states, each array [*B, ...] with the batch axes of
        h [*B, H].
      zero: their zero states, of the same shapes.

    Raises:
      ValueError: the shapes differ, or an array lacks the batch axes.
    """
    # Unchecked, `where` would broadcast a batch of one state to all sequences.
    found, expected = (jax.tree.map(jnp.shape, s) for s in (states, zero))
    if found != expected:
      raise ValueError(f"states must have the shapes {expected}, got {found}")
    for state in zero:
      check_rows("state_reset", state)
    batch_shape = zero[0].h.shape[:-1]
    is_reset = jax.random.bernoulli(key, self.state_reset, batch_shape)
    return select(is_reset, zero, states)

  def drop_weights(self, key: jax.Array, params: Any) -> Any:
    """Apply token_dropout and weight_drop to a language model's params."""
    key_tokens, key_layers = jax.random.split(key)
    rows = (len(params.embedding), 1)
    embedding, rate = params.embedding, self.token_dropout
    if rate:
      drawn = regularize.factors(key_tokens, rows, rate, embedding.dtype)
      embedding = embedding * drawn
    layers = tuple(
      regularize.drop_connect(k, layer, self.weight_drop)
      if regularize.has_w_h(layer)
      else layer
      for k, layer in zip(
        jax.random.split(key_layers, len(params.layers)),
        params.layers,
        strict=True,
      )
    )
    return params._replace(embedding=embedding, layers=layers)

  def stack_options(
    self, key: jax.Array, states: tuple[State, ...], num_steps: int
  ) -> dict[str, Any]:
    """Return the keyword arguments of `unroll_stack` for dropout and zoneout.

    Args:
      key: a typed PRNG key.
      states: the layers' states, for their shapes.
      num_steps: T, time steps of the batch.
    """
    key_layers, *keys = jax.random.split(key, len(states) + 1)
    options: dict[str, Any] = {}
    if self.layer_dropout:
      options |= {"dropout": self.layer_dropout, "locked": True}
      options["key"] = key_layers
    if self.zoneout_h or self.zoneout_c:
      options["zoneout"] = tuple(
        self._zoneout(k, state, num_steps)
        for k, state in zip(keys, states, strict=True)
      )
    return options

  def _zoneout(self, key: jax.Array, state: State, num_steps: int) -> State:
    """Return which units of a layer keep their values, bool [T, ..., H]."""
    rates = {"h": self.zoneout_h, "c": self.zoneout_c}
    rates_of_state = (rates.get(field, 0.0) for field in state._fields)
    keep = regularize.zoneout(
      key, state, num_steps, type(state)(*rates_of_state)
    )
    if isinstance(keep, SLSTMState):
      return keep._replace(n=keep.c, m=keep.c)  # c, n and m are one memory
    return keep

  def drop_outputs(self, key: jax.Array, hs: jax.Array) -> jax.Array:
    """Apply output_dropout to the top layer's outputs, [T, ..., H]."""
    return regularize.locked_dropout(key, hs, self.output_dropout)

  def penalty(self, hs: jax.Array, dropped_hs: jax.Array) -> jax.Array:
    """Return the sum of the AR and TAR penalties, [], to add to the loss.

    With a single time step, the TAR penalty is 0.

    Args:
      hs: the top layer's outputs, [T, ..., H].
      dropped_hs: the same after `drop_outputs`.
    """
    hs, dropped_hs = upcast((hs, dropped_hs))
    total = jnp.zeros((), hs.dtype)
    if self.ar_coef:
      total += self.ar_coef * (dropped_hs**2).mean()
    if self.tar_coef and hs.shape[0] > 1:
      total += self.tar_coef * ((hs[1:] - hs[:-1]) ** 2).mean()
    return total
