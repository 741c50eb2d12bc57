"""The initial weights of a language model whose cell has outputs of its own."""

from lstm_jax import projected_lstm
from lstm_jax.language import ModelConfig, language_model

V = 11


def test_a_readout_starts_by_the_number_of_outputs_not_of_hidden_units(key):
  own, unit = (
    language_model(
      ModelConfig(projected_lstm, hidden_size=8, readout_std=std), V
    )
    .init(key)
    .readout
    for std in (None, 1.0)
  )
  assert own.shape == (4, V)  # the outputs are half of the hidden units
  assert (own == unit / 2).all()
