"""Check that arrays hold tokens of a vocabulary."""

import numpy as np
from numpy.typing import ArrayLike


def check_range(name: str, tokens: ArrayLike, vocabulary_size: int) -> None:
  """Raise ValueError unless all tokens are integers in [0, V)."""
  tokens = np.asarray(tokens)
  if not tokens.size:
    return
  known = np.issubdtype(tokens.dtype, np.integer)
  if not known or tokens.min() < 0 or tokens.max() >= vocabulary_size:
    raise ValueError(
      f"{name} must be integers in [0, {vocabulary_size}), got "
      f"{tokens.dtype} from {tokens.min()} to {tokens.max()}"
    )


def as_tokens(
  tokens: ArrayLike, vocabulary_size: int, name: str = "tokens"
) -> np.ndarray:
  """Return tokens as an array [N].

  Args:
    tokens: any array.
    vocabulary_size: V.
    name: what the error message calls them.

  Raises:
    ValueError: they have more axes, or some are not in [0, V).
  """
  array = np.asarray(tokens)
  if array.ndim != 1:
    raise ValueError(f"{name} must be [N], got {array.shape}")
  check_range(name, array, vocabulary_size)
  return array
