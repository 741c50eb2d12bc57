"""A text that a model writes, part by part, and that anyone may continue.

>>> from lstm_jax.language import CharTokenizer, ModelConfig, language_model
>>> tokenizer = CharTokenizer.from_text("to be or not to be")
>>> model = language_model(ModelConfig(hidden_size=8), tokenizer.size)
>>> params = model.init(jax.random.key(0))
>>> stream = TextStream(model, params, tokenizer, DrawingRules())
>>> stream.read("to ")
>>> len("".join(stream.write(jax.random.key(1), 30)))
30
>>> stream.read(" or not")
>>> stream.text[:3], stream.text[-7:], len(stream.text)
('to ', ' or not', 40)
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.language.drawing import (
  DrawingRules,
  check_count,
  check_key,
  checked_rules,
  draw,
)
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.sampling import (
  Carry,
  advance,
  check_prompt,
  read_prompts,
)
from lstm_jax.language.tokenizer import CharTokenizer, Tokenizer

PART = 32  # tokens that one call reads or draws
DRAWN = -1  # in the place of a token that is to be drawn


class TextStream:
  """A text, and what the model carries after it.

  Args:
    model: the language model.
    params: its weights.
    tokenizer: its tokenizer.
    rules: how tokens are drawn.

  Raises:
    ValueError: a rule is out of its range, or suppresses all tokens.
  """

  def __init__(
    self,
    model: LanguageModel,
    params: LanguageParams,
    tokenizer: Tokenizer,
    rules: DrawingRules,
  ):
    self._rules = checked_rules(rules, tokenizer.size)
    self._model, self._params, self._tokenizer = model, params, tokenizer
    self._tokens: list[int] = []
    self._key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    token = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(partial(read_prompts, model), params, token)
    self._carry: Carry = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes
    )

  @property
  def text(self) -> str:
    """The text so far."""
    return self._tokenizer.decode(np.array(self._tokens, np.int32))

  def read(self, text: str) -> None:
    """Go on from a text that follows the one so far.

    A tokenizer of words takes its first word for the first of a line, so that
    a quotation mark there is an opening one.

    Raises:
      ValueError: it is empty, or has unknown characters or words.
    """
    tokens = self._tokenizer.encode_known(text)
    if not len(tokens):
      raise ValueError(
        f"the text must have at least one {self._tokenizer.unit}"
      )
    self.read_tokens(tokens)

  def read_tokens(self, tokens: np.ndarray) -> None:
    """Go on from tokens, int [P], that follow the text so far.

    Raises:
      ValueError: there are none, or others than those of the vocabulary.
    """
    check_prompt(tokens, self._tokenizer.size)
    shape = len(tokens), *self._key.shape
    no_keys = np.zeros(shape, self._key.dtype)  # none is drawn
    for _ in self._advance(no_keys, np.asarray(tokens, np.int32)):
      pass

  def write(self, key: jax.Array, length: int) -> Iterator[str]:
    """Draw n tokens, and yield the text that they add, part by part.

    After one text has been read, the tokens are those of `sample`.

    Args:
      key: a typed PRNG key of JAX's default kind.
      length: n.

    Raises:
      ValueError: nothing has been read, n is no integer of at least 0, or the
        key is of another kind.
    """
    if not self._tokens:
      raise ValueError("a text must be read before one is written")
    check_count("length", length, 0)
    check_key(key)
    return self._write(key, int(length))

  def _write(self, key: jax.Array, length: int) -> Iterator[str]:
    keys = np.asarray(jax.random.key_data(jax.random.split(key, length)))
    for first in self._advance(keys, np.full(length, DRAWN, np.int32)):
      yield self._text_from(first)

  def _advance(self, keys: np.ndarray, given: np.ndarray) -> Iterator[int]:
    """Read or draw tokens, and yield where each part of them begins.

    What JAX would compile for arrays of this length alone is left to NumPy.
    """
    for start in range(0, len(given), PART):
      part = slice(start, start + PART)
      count = len(given[part])
      padding = PART - count
      self._carry, tokens = _advance(
        self._model,
        self._rules,
        self._params,
        self._carry,
        np.pad(keys[part], ((0, padding), (0, 0))),
        np.pad(given[part], (0, padding)),
        count,
      )
      first = len(self._tokens)
      self._tokens += np.asarray(tokens)[:count].tolist()
      yield first

  def _text_from(self, first: int) -> str:
    """Return the text that tokens[first:] add to that of tokens[:first]."""
    symbols = self._tokenizer.symbols
    if isinstance(self._tokenizer, CharTokenizer):
      return "".join(symbols[token] for token in self._tokens[first:])
    start = first  # no line depends on those before it
    while start and not symbols[self._tokens[start]].startswith("\n"):
      start -= 1
    pieces = self._tokenizer.pieces(np.array(self._tokens[start:], np.int32))
    return "".join(pieces[first - start :])


@partial(jax.jit, static_argnums=(0, 1))
def _advance(model, rules, params, carry, keys, given, count):
  """Return (carry, tokens [n]) after the first `count` of the given tokens.

  One program reads texts and draws them, of any length: compiling is most of
  the time of a short sample.
  """
  keys = jax.random.wrap_key_data(keys)

  def body(t, loop):
    carry, tokens = loop
    drawn = draw(rules, keys[t], carry.logits)
    token = jnp.where(given[t] == DRAWN, drawn, given[t])
    carry = advance(model, params, carry.state, token[None])
    return carry, tokens.at[t].set(token[0])

  return lax.fori_loop(0, count, body, (carry, given))
