"""The protocol of all tokenizers, and the tokenizer of single characters.

>>> tokenizer = CharTokenizer.from_text("to be or not to be")
>>> tokenizer.symbols
' benort'
>>> tokenizer.decode(tokenizer.encode("not to be"))
'not to be'
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lstm_jax.language.tokens import as_tokens, each_in_range


class Tokenizer(Protocol):
  """Converts a text to tokens, which are integers in [0, V), and back."""

  @property
  def symbols(self) -> Sequence[str]:
    """The vocabulary: what each token stands for, all distinct."""

  @property
  def size(self) -> int:
    """V, the number of distinct tokens."""

  @property
  def unit(self) -> str:
    """What one token is, such as "character"."""

  @property
  def unknown_tokens(self) -> tuple[int, ...]:
    """Tokens that stand for unknown text: `suppress_tokens` for `sample`."""

  def _asdict(self) -> dict[str, Any]:
    """Return the fields, to save the tokenizer; every NamedTuple has this."""

  def encode(self, text: str) -> np.ndarray:
    """Return the tokens of text, int32 [N]."""

  def encode_known(self, text: str) -> np.ndarray:
    """Return the tokens of text, or raise ValueError if one is unknown."""

  def decode(self, tokens: np.ndarray) -> str:
    """Return the text of tokens [N].

    Raises:
      ValueError: they are not [N], or not all integers in [0, V).
    """

  def pieces(self, tokens: np.ndarray) -> list[str]:
    """Return the text that each of tokens [N] adds; joined, that is `decode`.

    Raises:
      ValueError: as `decode`.
    """

  def each_piece(self, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text that each token adds, as soon as the token arrives.

    Raises:
      ValueError: a token is not in [0, V).
    """

  def spelling_nats(self, text: str, cached: bool = False) -> np.ndarray:
    """Return the nats of spelling each unknown one of N tokens, float64 [N].

    They are 0 for known tokens. If cached, each unknown one is also predicted
    from the unknown words before it.
    """


class CharTokenizer(NamedTuple):
  """A tokenizer whose tokens are single characters (Unicode code points)."""

  symbols: str  # distinct, sorted by code point

  @classmethod
  def from_text(cls, text: str) -> "CharTokenizer":
    """Return the tokenizer of the distinct characters of text.

    Raises:
      ValueError: text is empty.
    """
    if not text:
      raise ValueError("a tokenizer needs at least one character")
    return cls("".join(sorted(set(text))))

  @property
  def size(self) -> int:
    """V, the number of distinct tokens."""
    return len(self.symbols)

  @property
  def unit(self) -> str:
    """What one token is: a character."""
    return "character"

  @property
  def unknown_tokens(self) -> tuple[int, ...]:
    """Empty: every token stands for one known character."""
    return ()

  def encode(self, text: str) -> np.ndarray:
    """Return the tokens of text, int32 [len(text)].

    Raises:
      ValueError: text has a character outside the vocabulary; the message
        names the first one and its position.
    """
    known, codes = _code_points(self.symbols), _code_points(text)
    tokens = np.searchsorted(known, codes).clip(max=self.size - 1)
    unknown = np.flatnonzero(known[tokens] != codes)
    if unknown.size:
      position = int(unknown[0])
      raise ValueError(
        f"character {text[position]!r} at position {position} is not in the "
        f"vocabulary of {self.size} characters: {self.symbols!r}"
      )
    return tokens.astype(np.int32)

  def encode_known(self, text: str) -> np.ndarray:
    """Return `encode(text)`, which raises for every unknown character."""
    return self.encode(text)

  def decode(self, tokens: np.ndarray) -> str:
    """Return the text of tokens [N]: the inverse of `encode`."""
    return "".join(self.pieces(tokens))

  def pieces(self, tokens: np.ndarray) -> list[str]:
    """Return the character of each token, [N]."""
    return list(self.each_piece(as_tokens(tokens, self.size)))

  def each_piece(self, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the character of each token."""
    known = each_in_range(tokens, self.size)
    return (self.symbols[token] for token in known)

  def spelling_nats(self, text: str, cached: bool = False) -> np.ndarray:
    """Return zeros, float64 [N]: no character is unknown."""
    del cached
    return np.zeros(len(text))


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
