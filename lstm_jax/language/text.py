"""Text as tokens: vocabularies, corpora, splits.

>>> vocabulary = characters("to be or not to be")
>>> vocabulary.symbols
' benort'
>>> vocabulary.decode(vocabulary.encode("not to be"))
'not to be'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

Text = TypeVar("Text", str, np.ndarray)


class Tokenizer(Protocol):
  """What every vocabulary can do: turn a text into tokens, and back."""

  @property
  def symbols(self) -> Sequence[str]:
    """What each token stands for, distinct."""

  @property
  def size(self) -> int:
    """V, the number of tokens."""

  @property
  def unit(self) -> str:
    """What a token is, in the singular."""

  @property
  def unknown_tokens(self) -> tuple[int, ...]:
    """The tokens that stand for what is unknown, not to be written."""

  def _asdict(self) -> dict[str, Any]:
    """Return what it is made of, as every NamedTuple does."""

  def encode(self, text: str) -> np.ndarray:
    """Return the tokens of text, int32 [N]."""

  def encode_known(self, text: str) -> np.ndarray:
    """Return the tokens of text, or raise ValueError if one is a stand-in."""

  def decode(self, tokens: np.ndarray) -> str:
    """Return the text of tokens [N]."""

  def pieces(self, tokens: np.ndarray) -> list[str]:
    """Return what each token adds to the text, [N]; none adds nothing."""

  def spelling(self, text: str) -> np.ndarray:
    """Return the nats of spelling what stand-ins stand for, float64 [N]."""


class CharTokenizer(NamedTuple):
  """The characters that a model knows, in the order of their tokens."""

  symbols: str  # distinct, sorted by code point

  @property
  def size(self) -> int:
    """V, the number of tokens."""
    return len(self.symbols)

  @property
  def unit(self) -> str:
    """What a token is: a character."""
    return "character"

  @property
  def unknown_tokens(self) -> tuple[int, ...]:
    """None: every token is a character."""
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
    """Return `encode(text)`, which knows every character or raises."""
    return self.encode(text)

  def decode(self, tokens: np.ndarray) -> str:
    """Return the text of tokens [N]: the inverse of `encode`."""
    return "".join(self.pieces(tokens))

  def pieces(self, tokens: np.ndarray) -> list[str]:
    """Return the character of each token, [N]."""
    return [self.symbols[token] for token in np.asarray(tokens)]

  def spelling(self, text: str) -> np.ndarray:
    """Return zeros, float64 [N]: a character is its own spelling."""
    return np.zeros(len(text))


def characters(text: str) -> CharTokenizer:
  """Return the vocabulary of the distinct characters of text, sorted.

  Raises:
    ValueError: text is empty.
  """
  if not text:
    raise ValueError("a vocabulary needs at least one character")
  return CharTokenizer("".join(sorted(set(text))))


def read_text(path: str | Path) -> str:
  """Return the text of a UTF-8 file, its line ends as single newlines.

  Raises:
    ValueError: the file is missing, unreadable, empty or not UTF-8.
  """
  try:
    text = Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"corpus {path} is not UTF-8: byte 0x{error.object[error.start]:02x} "
      f"at offset {error.start}"
    ) from None
  except OSError as error:
    reason = (error.strerror or str(error)).lower()
    raise ValueError(f"corpus {path} cannot be read: {reason}") from None
  if not text:
    raise ValueError(f"corpus {path} is empty")
  return text.replace("\r\n", "\n").replace("\r", "\n")


def split(tokens: Text, held_out: float) -> tuple[Text, Text]:
  """Return (training, held-out) tokens: the last share of them is held out.

  Args:
    tokens: [N], or a text, which is cut between two characters.
    held_out: the share, in (0, 1).

  Raises:
    ValueError: held_out is not between 0 and 1, or a side has fewer than the
      two tokens that make one prediction.
  """
  if not 0 < held_out < 1:
    raise ValueError(f"the held-out share must be in (0, 1), got {held_out}")
  cut = int(len(tokens) * (1 - held_out) + 1e-6)  # 100 (1 − 0.9) is 9.99…
  sides = tokens[:cut], tokens[cut:]
  if min(len(side) for side in sides) < 2:
    raise ValueError(
      f"the corpus is too short: of {len(tokens)} tokens, a held-out share of "
      f"{held_out} leaves {len(sides[0])} to train on and {len(sides[1])} "
      "held out, and each needs at least 2"
    )
  return sides


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
