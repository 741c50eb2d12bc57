"""What training adds to a language model's loss: noise, and two penalties.

  token_dropout   rows of E: a character is dropped wherever it stands
  layer_dropout   units between layers, the same at every step
  output_dropout  units of the top layer's h, the same at every step
  weight_drop     weights of every w_h
  zoneout_h, _c   updates of every layer's h and c, drawn at each step
  activation      α, of α · mean(ĥ²), ĥ the top outputs that are read out (AR)
  slowness        β, of β · mean((hₜ − hₜ₋₁)²) of the top outputs (TAR)

Everything is drawn anew for each block. At rates of 0 the loss is the model's.

References:
  Merity, Keskar and Socher (2018), Regularizing and optimizing LSTM language
  models (all but zoneout); Krueger et al. (2017), Zoneout; Gal and Ghahramani
  (2016), locked dropout.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.cell import State
from lstm_jax.sequence import regularize


@dataclasses.dataclass(frozen=True)
class Regularizers:
  """Rates in [0, 1), and two factors.

  Raises:
    ValueError: a rate is not in [0, 1), or a factor is negative or infinite.
  """

  token_dropout: float = 0.0
  layer_dropout: float = 0.0
  output_dropout: float = 0.0
  weight_drop: float = 0.0
  zoneout_h: float = 0.0
  zoneout_c: float = 0.0
  ar_coef: float = 0.0
  tar_coef: float = 0.0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      factor = name in ("ar_coef", "tar_coef")
      if not 0 <= value < (float("inf") if factor else 1):
        kind = "≥ 0 and finite" if factor else "in [0, 1)"
        raise ValueError(f"{name} must be {kind}, got {value}")

  def drop_weights(self, key: jax.Array, params: Any) -> Any:
    """Return a language model's params with tokens and weights dropped."""
    key_tokens, key_layers = jax.random.split(key)
    rows = (len(params.embedding), 1)
    embedding, rate = params.embedding, self.token_dropout
    if rate:
      drawn = regularize.factors(key_tokens, rows, rate, embedding.dtype)
      embedding = embedding * drawn
    layers = tuple(
      regularize.drop_connect(k, layer, self.weight_drop)
      for k, layer in zip(
        jax.random.split(key_layers, len(params.layers)),
        params.layers,
        strict=True,
      )
    )
    return params._replace(embedding=embedding, layers=layers)

  def of_stack(
    self, key: jax.Array, states: tuple[State, ...], steps: int
  ) -> dict[str, Any]:
    """Return the arguments of `unroll_stack` that drop and zone out."""
    key_layers, *keys = jax.random.split(key, len(states) + 1)
    options: dict[str, Any] = {}
    if self.layer_dropout:
      options |= {"dropout": self.layer_dropout, "locked": True}
      options["key"] = key_layers
    if self.zoneout_h or self.zoneout_c:
      options["zoneout"] = tuple(
        regularize.zoneout(k, state, steps, self._rates(state))
        for k, state in zip(keys, states, strict=True)
      )
    return options

  def _rates(self, state: State) -> State:
    rates = {"h": self.zoneout_h, "c": self.zoneout_c}
    return type(state)(*(rates[field] for field in state._fields))

  def drop_outputs(self, key: jax.Array, hs: jax.Array) -> jax.Array:
    """Return the top layer's outputs [T, ..., H] as they are read out."""
    return regularize.locked_dropout(key, hs, self.output_dropout)

  def penalty(self, hs: jax.Array, read_out: jax.Array) -> jax.Array:
    """Return what is added to the loss, in nats per token, []."""
    total = jnp.zeros((), hs.dtype)
    if self.ar_coef:
      total += self.ar_coef * (read_out**2).mean()
    if self.tar_coef and len(hs) > 1:
      total += self.tar_coef * ((hs[1:] - hs[:-1]) ** 2).mean()
    return total
