r"""Words as tokens: verse cut into words, marks and line breaks, and back.

A text is cut at its blanks, and what stands between them into pieces:

  words        thy, feel'st, o'er; with the apostrophe of 'tis and of th' (a
               list: others are quotation marks), and never with a hyphen
  line breaks  each with the indentation of the line that it begins
  marks        , ; ! one by one, but -- is one

Blanks are no pieces: rules say between which two a blank belongs (`_apart`). A
piece that stands otherwise in the text is another symbol, itself after a blank,
whichever of the two the rules expect: " ," is apart from the word before it,
" love" is glued to a comma, and " '" opens a quotation, which "'" closes. So a
text loses nothing but what its normal form does: blanks in a row are one, those
at a line's end and before the first line's words are none, and all are spaces.

>>> vocabulary = words("'Tis thee,\n  thee I love, love!", min_count=2)
>>> vocabulary.symbols
(',', 'love', 'thee', '<unk>')
>>> tokens = vocabulary.encode("thee, my love,love")
>>> tokens.tolist(), vocabulary.decode(tokens)
([2, 0, 3, 1, 0, 3], 'thee, <unk> love, <unk>')
>>> normal("'Tis  thee , \n  o'er th' sea ")
"'Tis thee ,\n  o'er th' sea"
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lstm_jax.language.spelling import spelling_nats

UNKNOWN = "<unk>"  # as a text it is three pieces, so it is no word's symbol
# What Shakespeare clips at a word's beginning, and at its end.
HEADLESS = (
  "tis|twas|twere|twill|twould|twixt|tween|gainst|gan|gins|em|fore|mongst|"
  "scape|scaped|scap'd|greed|greeing|bout|longs|faith|zounds|t|s"
)
TAILLESS = "th|o|i|a|ha|wi"
_PIECE = re.compile(
  rf"['’](?i:{HEADLESS})(?!\w)"
  rf"|(?i:{TAILLESS})['’](?!\w)"
  r"|\w+(?:['’]\w+)*"
  r"|--+"
  r"|.",
  re.DOTALL,
)
_GLUED_TO_LEFT = frozenset(",;:.!?)]}”’…%'\"-")
_GLUED_TO_RIGHT = frozenset("([{“‘$-")
_QUOTES = frozenset("'\"")


class WordTokenizer(NamedTuple):
  """The words that a model knows, in the order of their tokens.

  A word that is not among them is `<unk>`, the last token. `spelling` says what
  it costs to tell which word that is.
  """

  symbols: tuple[str, ...]  # distinct, the most frequent first; then <unk>
  rare: tuple[str, ...]  # those of the training text that <unk> stands for

  @property
  def size(self) -> int:
    """V, the number of tokens."""
    return len(self.symbols)

  @property
  def unit(self) -> str:
    """What a token is: a word, where marks and line breaks count as words."""
    return "word"

  @property
  def unknown_tokens(self) -> tuple[int, ...]:
    """The tokens without a text of their own, not to be written: <unk>."""
    return (self.size - 1,)

  def encode(self, text: str) -> np.ndarray:
    """Return the tokens of text, int32 [N], with <unk> for unknown words."""
    token_of = {symbol: token for token, symbol in enumerate(self.symbols)}
    unknown = self.size - 1
    tokens = [token_of.get(symbol, unknown) for symbol in _symbols(text)]
    return np.array(tokens, np.int32)

  def encode_known(self, text: str) -> np.ndarray:
    """Return the tokens of text, int32 [N].

    Raises:
      ValueError: text has words outside the vocabulary; the message names them.
    """
    known = set(self.symbols)
    unknown = [symbol for symbol in _symbols(text) if symbol not in known]
    if unknown:
      names = (
        f"{piece!r}{' spaced like that' * (piece in known)}"
        for piece in (name.removeprefix(" ") for name in dict.fromkeys(unknown))
      )
      raise ValueError(
        f"not in the vocabulary of {self.size - 1:,} words: {', '.join(names)}"
      )
    return self.encode(text)

  def decode(self, tokens: np.ndarray) -> str:
    """Return the text of tokens [N], blanks and all.

    The text of the tokens of t is `normal(t)`, but for words that are unknown.
    The text of tokens begins with the text of the first few of them.
    """
    return "".join(self.pieces(tokens))

  def pieces(self, tokens: np.ndarray) -> list[str]:
    """Return what each token adds to the text, its blank included, [N]."""
    return list(_spaced(self.symbols[token] for token in np.asarray(tokens)))

  def spelling(self, text: str) -> np.ndarray:
    """Return the nats of spelling each unknown word of text, float64 [N].

    Known words need no spelling: 0. The letters have the probabilities that
    `spelling_nats` finds in the rare words of the training text.
    """
    symbols, known = list(_symbols(text)), set(self.symbols)
    unknown = [n for n, symbol in enumerate(symbols) if symbol not in known]
    nats = np.zeros(len(symbols))
    nats[unknown] = spelling_nats(self.rare, [symbols[n] for n in unknown])
    return nats


def words(text: str, min_count: int) -> WordTokenizer:
  """Return the vocabulary of the words that text has min_count times or more.

  Raises:
    ValueError: min_count is below 1, or no word is so frequent.
  """
  if min_count < 1:
    raise ValueError(f"min_count must be ≥ 1, got {min_count}")
  counts = Counter(_symbols(text))
  ordered = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
  kept = tuple(symbol for symbol in ordered if counts[symbol] >= min_count)
  if not kept:
    raise ValueError(
      f"a min_count of {min_count} leaves no word: the most frequent of "
      f"{len(counts):,} occurs {max(counts.values(), default=0):,} times"
    )
  return WordTokenizer((*kept, UNKNOWN), tuple(ordered[len(kept) :]))


def normal(text: str) -> str:
  """Return text in the normal form of the module's docstring.

  It is the text of text's own words, so `normal(normal(t)) == normal(t)`, and
  both have the same tokens, whatever t.
  """
  return "".join(_spaced(_symbols(text)))


def _symbols(text: str) -> Iterator[str]:
  """Yield the symbols of text: pieces, after a blank where no rule foresees."""
  for number, line in enumerate(text.split("\n")):
    chunks = line.split()
    if number:
      indentation = len(line) - len(line.lstrip()) if chunks else 0
      yield "\n" + " " * indentation
    before, stood_apart = "", True
    for chunk in chunks:
      blank = before != ""
      for piece in _PIECE.findall(chunk):
        foreseen = _apart(before, stood_apart, piece)
        yield piece if blank == foreseen else " " + piece
        before, stood_apart = piece, blank or not before
        blank = False


def _spaced(symbols: Iterable[str]) -> Iterator[str]:
  """Yield what each symbol adds to the text: the inverse of `_symbols`."""
  before, stood_apart = "", True
  for symbol in symbols:
    if symbol.startswith("\n"):
      yield symbol
      before = ""
      continue
    piece = symbol.removeprefix(" ")
    blank = _apart(before, stood_apart, piece) != (piece != symbol)
    yield " " * blank + piece
    before, stood_apart = piece, blank or not before


def _apart(before: str, stood_apart: bool, piece: str) -> bool:
  """Return whether a blank belongs between two pieces of a line.

  Args:
    before: the piece before, empty where the line begins.
    stood_apart: whether that one has a blank before it, or begins the line.
    piece: the piece that follows.
  """
  if not before or piece in _GLUED_TO_LEFT or piece.startswith("--"):
    return False
  if before in _QUOTES:
    return not stood_apart  # after a quotation's end, not after its beginning
  return before[0] not in _GLUED_TO_RIGHT
