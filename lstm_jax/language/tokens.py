"""Check that arrays hold tokens of a vocabulary."""

import operator
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike


def check_range(name: str, tokens: ArrayLike, vocabulary_size: int) -> None:
  """Raise ValueError unless all tokens are integers in [0, V)."""
  tokens = np.asarray(tokens)
  if not tokens.size:
    return
  kind = tokens.dtype.kind  # `issubdtype` takes timedelta64 for an integer
  if kind in "iu" and tokens.min() >= 0 and tokens.max() < vocabulary_size:
    return
  got = f"{tokens.dtype}"
  if kind in "biuf":  # booleans and real numbers: they have a range
    got += f" from {tokens.min()} to {tokens.max()}"
  raise ValueError(
    f"{name} must be integers in [0, {vocabulary_size}), got {got}"
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
    ValueError: they are not [N], or not all integers in [0, V).
  """
  array = np.asarray(tokens)
  if array.ndim != 1:
    raise ValueError(f"{name} must be [N], got {array.shape}")
  check_range(name, array, vocabulary_size)
  return array


def each_in_range(tokens: Iterable[int], vocabulary_size: int) -> Iterator[int]:
  """Yield the same tokens, each as soon as it has been checked.

  Raises:
    ValueError: a token is not an integer in [0, V).
  """
  for token in tokens:
    try:
      known = 0 <= operator.index(token) < vocabulary_size  # not −1, the last
    except TypeError:
      known = False
    if not known:
      raise ValueError(
        f"tokens must be integers in [0, {vocabulary_size}), got {token}"
      )
    yield token
