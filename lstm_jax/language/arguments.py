"""Check the weights and the tokens that a language model is given."""

from typing import Any

import jax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.checks import check_shape, types_text
from lstm_jax.cells.precision import as_array, as_arrays
from lstm_jax.language.params import LanguageParams, ModelConfig
from lstm_jax.sequence.stack import check_some_layers


def as_params(
  config: ModelConfig, vocabulary_size: int, params: Any
) -> LanguageParams:
  """Return the weights of a language model as JAX arrays.

  Without this check, weights of another vocabulary would give losses too, and a
  bias of one element would be added to all logits.

  Args:
    config: the model's.
    vocabulary_size: V.
    params: the weights. Those of the layers are checked by `unroll_stack`.

  Raises:
    ValueError: params are not `LanguageParams`; the embedding, the readout or
      the bias is no array of the model's shape; a tied readout is not None; or
      the layers are not in a list or tuple, or there are none.
  """
  _check_type(params)
  sizes = vocabulary_size, config.embedding_size
  check_shape("params.embedding", params.embedding, *sizes)
  if not config.tied:
    # The cell decides how many outputs n the top layer has.
    check_shape("params.readout", params.readout, "n", vocabulary_size)
  elif params.readout is not None:
    found = type(params.readout).__name__
    raise ValueError(f"params.readout must be None, as it is tied, got {found}")
  check_shape("params.bias", params.bias, vocabulary_size)
  check_some_layers(params.layers, "params.layers")
  return as_arrays(params)


def vocabulary_size_of(params: Any) -> int:
  """Return V, the number of tokens that weights of a language model are for.

  Raises:
    ValueError: params are not `LanguageParams`, or the bias is no array [V].
  """
  _check_type(params)
  return check_shape("params.bias", params.bias, "V").shape[0]


def _check_type(params: Any) -> None:
  if not isinstance(params, LanguageParams):
    types = types_text(LanguageParams, type(params))
    raise ValueError(f"params must be {types}")


def as_token_array(tokens: Any) -> jax.Array:
  """Return tokens as an array; raise ValueError unless integers [T, ...]."""
  tokens = as_array("tokens must be integers [T, ...]", tokens)
  if not is_token(tokens) or not tokens.ndim:
    raise ValueError(
      f"tokens must be integers [T, ...], got {tokens.dtype} {tokens.shape}"
    )
  return tokens
