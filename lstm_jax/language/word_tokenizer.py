r"""A tokenizer of words, punctuation marks and line breaks.

A text is split at its spaces, and the strings between them into pieces:

  words        thy, feel'st, o'er; also 'tis and th', which are in a list (any
               other apostrophe outside a word is a quotation mark); a word has
               no hyphens
  line breaks  each with the indentation of the line that it begins
  marks        , ; ! each a piece of its own, but -- is one piece

Spaces are not tokens: rules decide between which two pieces a space belongs
(`_space_between`). Where the text disagrees with the rules, the piece has
another token, whose symbol begins with a space, even if it is the text that
lacks one: " ," is a comma with a space before it, " love" is a word right after
a comma, and " '" opens a quotation after a word, while "'" closes it. So
decoding returns the text in its normal form (`normalize`): every space
character is " ", consecutive ones are one except in indentation, and those at
the end of a line or at the beginning of the text are left out.

>>> text = "'Tis thee,\n  thee I love, love!"
>>> tokenizer = WordTokenizer.from_text(text, min_count=2)
>>> tokenizer.symbols
(',', 'love', 'thee', '<unk>')
>>> tokens = tokenizer.encode("thee, my love,love")
>>> tokens.tolist(), tokenizer.decode(tokens)
([2, 0, 3, 1, 0, 3], 'thee, <unk> love, <unk>')
>>> normalize("'Tis  thee , \n  o'er th' sea ")
"'Tis thee ,\n  o'er th' sea"
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lstm_jax.cells.checks import check_count
from lstm_jax.language.spelling import spelling_nats
from lstm_jax.language.tokens import as_tokens, each_in_range

UNKNOWN = "<unk>"  # cannot be a word's symbol: as a text it is three pieces
# Words that Shakespeare shortens at the beginning ('tis) and at the end (th').
CLIPPED_START = (
  "tis|twas|twere|twill|twould|twixt|tween|gainst|gan|gins|em|fore|mongst|"
  "scape|scaped|scap'd|greed|greeing|bout|longs|faith|zounds|t|s"
)
CLIPPED_END = "th|o|i|a|ha|wi"
_PIECE = re.compile(
  rf"['’](?i:{CLIPPED_START})(?!\w)"
  rf"|(?i:{CLIPPED_END})['’](?!\w)"
  r"|\w+(?:['’]\w+)*"
  r"|--+"
  r"|.",
  re.DOTALL,
)
NO_SPACE_BEFORE = frozenset(",;:.!?)]}”’…%'\"-")
NO_SPACE_AFTER = frozenset("([{“‘$-")
QUOTES = frozenset("'\"")


class WordTokenizer(NamedTuple):
  """A tokenizer whose tokens are words, punctuation marks and line breaks.

  Words outside the vocabulary are the unknown token <unk>, the last one;
  `spelling_nats` returns the cost of spelling them out.
  """

  symbols: tuple[str, ...]  # distinct, the most frequent first; then <unk>
  rare: tuple[str, ...]  # symbols of the training text that are <unk>

  @classmethod
  def from_text(cls, text: str, min_count: int) -> "WordTokenizer":
    """Return the tokenizer of the words that occur min_count times or more.

    Args:
      text: the training text.
      min_count: occurrences that a word needs to be in the vocabulary.

    Raises:
      ValueError: min_count is not an integer ≥ 1, or no word is so frequent.
    """
    check_count("min_count", min_count)
    counts = Counter(_symbols(text))
    ordered = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    known = tuple(symbol for symbol in ordered if counts[symbol] >= min_count)
    if not known:
      raise ValueError(
        f"a min_count of {min_count} leaves no word: the most frequent of "
        f"{len(counts):,} occurs {max(counts.values(), default=0):,} times"
      )
    return cls((*known, UNKNOWN), tuple(ordered[len(known) :]))

  @property
  def size(self) -> int:
    """V, the number of distinct tokens."""
    return len(self.symbols)

  @property
  def unit(self) -> str:
    """What a token is called, though it may be a mark or a line break."""
    return "word"

  @property
  def unknown_tokens(self) -> tuple[int, ...]:
    """The token of <unk>: `suppress_tokens` for `sample`."""
    return (self.size - 1,)

  def encode(self, text: str) -> np.ndarray:
    """Return the tokens of text, int32 [N]; unknown words are <unk>."""
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
      # A piece may be known with the other spacing: the message then says so.
      pieces = {symbol.removeprefix(" ") for symbol in known}
      names = (
        f"{piece!r}{' with this spacing' * (piece in pieces)}"
        for piece in dict.fromkeys(name.removeprefix(" ") for name in unknown)
      )
      raise ValueError(
        f"not in the vocabulary of {self.size - 1:,} words: {', '.join(names)}"
      )
    return self.encode(text)

  def decode(self, tokens: np.ndarray) -> str:
    """Return the text of tokens [N], with spaces.

    `decode(encode(text))` is `normalize(text)`, except for unknown words and
    the spaces beside them, or beside a quotation mark after an unknown line
    break. The text of the first k tokens is the beginning of the text of all
    tokens.
    """
    return "".join(self.pieces(tokens))

  def pieces(self, tokens: np.ndarray) -> list[str]:
    """Return the text that each token adds, with its space, [N]."""
    return list(self.each_piece(as_tokens(tokens, self.size)))

  def each_piece(self, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text that each token adds, as soon as the token arrives."""
    known = each_in_range(tokens, self.size)
    return _pieces(self.symbols[token] for token in known)

  def spelling_nats(self, text: str, cached: bool = False) -> np.ndarray:
    """Return the cost of spelling each unknown token of text, float64 [N].

    It is in nats, and 0 for known tokens. The probabilities of the letters come
    from the rare words of the training text: see `lstm_jax.language.spelling`.

    Args:
      text: the text.
      cached: whether each is also predicted from the unknown words before it.
    """
    symbols, known = list(_symbols(text)), set(self.symbols)
    unknown = [n for n, symbol in enumerate(symbols) if symbol not in known]
    nats = np.zeros(len(symbols))
    words = [symbols[n] for n in unknown]
    nats[unknown] = spelling_nats(self.rare, words, cached)
    return nats


def normalize(text: str) -> str:
  """Return text with its spaces normalized, as the module's docstring says.

  The normal form has the same tokens as text, and is its own normal form.
  """
  return "".join(_pieces(_symbols(text)))


def _symbols(text: str) -> Iterator[str]:
  """Yield the symbols of text: its pieces, some of them after a space.

  The symbol of a piece has a space before it where the text has a space and the
  rules do not, or the other way round.
  """
  for number, line in enumerate(text.split("\n")):
    chunks = line.split()
    if number:
      indentation = len(line) - len(line.lstrip()) if chunks else 0
      yield "\n" + " " * indentation
    before, after_space = "", True
    for chunk in chunks:
      space = before != ""
      for piece in _PIECE.findall(chunk):
        expected = _space_between(before, after_space, piece)
        yield piece if space == expected else " " + piece
        before, after_space = piece, space or not before
        space = False


def _pieces(symbols: Iterable[str]) -> Iterator[str]:
  """Yield the text that each symbol adds: the inverse of `_symbols`."""
  before, after_space = "", True
  for symbol in symbols:
    if symbol.startswith("\n"):
      yield symbol
      before = ""
      continue
    piece = symbol.removeprefix(" ")
    expected = _space_between(before, after_space, piece)
    # A symbol that begins with a space is an exception to the rules.
    space = expected != (piece != symbol)
    yield " " * space + piece
    before, after_space = piece, space or not before


def _space_between(before: str, after_space: bool, piece: str) -> bool:
  """Return whether the rules put a space between two pieces of a line.

  Args:
    before: the first piece; "" at the beginning of a line.
    after_space: whether the first piece has a space before it or begins the
      line.
    piece: the second piece.
  """
  if not before or piece in NO_SPACE_BEFORE or piece.startswith("--"):
    return False
  if before in QUOTES:
    return not after_space  # a closing quotation mark, not an opening one
  return before[0] not in NO_SPACE_AFTER
