"""A text that a model writes part by part, and that its caller may continue.

>>> from lstm_jax.language import CharTokenizer, DrawingRules, ModelConfig
>>> from lstm_jax.language import language_model
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

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.checks import check_count
from lstm_jax.language.arguments import vocabulary_size_of
from lstm_jax.language.drawing import (
  DrawingRules,
  check_key,
  checked_rules,
  draw,
  split_rules,
)
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.programs import per_model
from lstm_jax.language.sampling import Carry, advance, check_prompt
from lstm_jax.language.tokenizer import Tokenizer
from lstm_jax.language.tokens import check_range

PART = 32  # tokens that one call reads or draws
DRAWN = -1  # in the place of a token that is to be drawn


class TextStream:
  """A text that is read and written in parts, and the model's state after it.

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
    rules = checked_rules(rules, vocabulary_size_of(params))
    # The rules that are static in `jax.jit`, and the numbers that are traced.
    self._static, self._numbers = split_rules(rules)
    self._model, self._params, self._tokenizer = model, params, tokenizer
    self._pieces: list[str] = []  # the text that each token adds
    self._waiting: deque[int] = deque()  # tokens to decode
    # An endless iterator: `_extend` takes one piece for each waiting token, so
    # that `popleft` always finds one.
    self._decoded = tokenizer.each_piece(iter(self._waiting.popleft, None))

    def first(params):
      token = jnp.zeros((1, 1), jnp.int32)
      return advance(model, params, model.initial_state((1,)), token)

    # The zero state. The logits beside it are not used: a text is read first.
    shapes = jax.eval_shape(first, params)
    self._carry: Carry = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes
    )

  @property
  def text(self) -> str:
    """The text so far."""
    return "".join(self._pieces)

  def read(self, text: str) -> None:
    """Append a given text to the text so far; the model reads it.

    A tokenizer of words encodes the given text as if it began a line. If it
    does not begin one, a quotation mark at its beginning becomes a closing
    mark: no space comes before the mark, and a space comes after it only where
    the given text has none.

    Raises:
      ValueError: the given text is empty, or has characters or words that the
        tokenizer or the model does not know.
    """
    tokens = self._tokenizer.encode_known(text)
    if not len(tokens):
      raise ValueError(
        f"the text must have at least one {self._tokenizer.unit}"
      )
    self.read_tokens(tokens)

  def read_tokens(self, tokens: np.ndarray) -> None:
    """Append given tokens, int [P], to the text so far; the model reads them.

    Raises:
      ValueError: there are none, or some are not in the vocabulary of both the
        model and the tokenizer.
    """
    known = min(len(self._params.bias), self._tokenizer.size)
    check_prompt(tokens, known)
    # The key is not used: nothing is drawn.
    spec = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    no_key = np.zeros(spec.shape, spec.dtype)
    for _ in self._extend(_kind(), no_key, np.asarray(tokens, np.int32)):
      pass

  def write(self, key: jax.Array, length: int) -> Iterator[str]:
    """Draw n tokens, and yield the text that they add, part by part.

    After one text has been read, the first call draws the same tokens as
    `sample` draws for one continuation of this text, with the same key and
    rules.

    Args:
      key: a typed PRNG key of JAX's default kind.
      length: n.

    Raises:
      ValueError: nothing has been read, n is not an integer ≥ 0, or the key is
        of another kind; or, in the iteration, a token is drawn that the
        tokenizer does not have.
    """
    if not self._pieces:
      raise ValueError("a text must be read before one is written")
    check_count("length", length, 0)
    check_key(key)
    data = np.asarray(jax.random.key_data(key))
    # Not `np.full`: however long the text, these take the memory of one.
    given = np.broadcast_to(np.int32(DRAWN), length)
    return self._extend(_kind(), data, given)

  def _extend(
    self, kind: str, key: np.ndarray, given: np.ndarray
  ) -> Iterator[str]:
    """Read or draw tokens, and yield the text that each part of them adds.

    Arrays as long as `given` are NumPy's: JAX would compile for each length.

    Args:
      kind: of the key; JAX's default may be another one in the iteration.
      key: its data.
      given: tokens, or DRAWN for each that is to be drawn, [N].
    """
    for start in range(0, len(given), PART):
      part = slice(start, start + PART)
      count = len(given[part])
      padding = PART - count
      carry, tokens = _advance(self._model)(
        self._static,
        kind,
        self._numbers,
        self._params,
        self._carry,
        key,
        start,
        np.pad(given[part], (0, padding)),
        count,
      )
      new = np.asarray(tokens)[:count]
      check_range("drawn tokens", new, self._tokenizer.size)
      # An error or Ctrl-C up to here leaves the text, and its carry, as they
      # were after the part before.
      self._waiting.extend(new.tolist())
      pieces = list(islice(self._decoded, count))
      self._pieces += pieces
      self._carry = carry
      yield "".join(pieces)


def _kind() -> str:
  """Return JAX's default kind of key."""
  config: Any = jax.config
  return config.jax_default_prng_impl


@partial(per_model, num_static=2)
def _advance(
  model, static, key_kind, numbers, params, carry, key, start, given, count
):
  """Return (carry, tokens [PART]) after the first `count` given tokens.

  One program both reads and draws texts, of any length, because compiling takes
  most of the time of a short sample.
  """
  key = jax.random.wrap_key_data(key, impl=key_kind)
  rules = static._replace(**numbers)

  def body(t, loop):
    carry, tokens = loop
    drawn = draw(rules, jax.random.fold_in(key, start + t), carry.logits)
    token = jnp.where(given[t] == DRAWN, drawn, given[t])
    carry = advance(model, params, carry.state, token[None])
    return carry, tokens.at[t].set(token[0])

  return lax.fori_loop(0, count, body, (carry, given))
