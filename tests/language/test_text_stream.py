"""A text written in parts equals what `sample` draws, and can be continued."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import (
  CharTokenizer,
  DrawingRules,
  ModelConfig,
  WordTokenizer,
  language_model,
  sample,
  text_stream,
  word_tokenizer,
)
from lstm_jax.language.text_stream import PART, TextStream
from tests.compiling import count_programs
from tests.draws import worst

VERSE = "Thou art more\n  lovely, and more 'temperate': thou\nart.\n"
RULES = DrawingRules(temperature=1.5, top_k=9, top_p=0.9, min_p=0.01)
LENGTH = 2 * PART + 5
CHARACTERS = CharTokenizer.from_text(VERSE)
WORDS = WordTokenizer.from_text(VERSE, min_count=1)


def make_model(tokenizer, key):
  """Return (model, params): large weights, for less even probabilities."""
  config = ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.float64)
  model = language_model(config, tokenizer.size)
  return model, jax.tree.map(lambda leaf: 3 * leaf, model.init(key))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("tokenizer", [CHARACTERS, WORDS], ids=["char", "word"])
def test_the_parts_of_a_text_are_what_sample_draws(tokenizer, key):
  model, params = make_model(tokenizer, key)
  rules = RULES._replace(suppress_tokens=tokenizer.unknown_tokens)
  prompt = "Thou art more\n  lovely"
  tokens = tokenizer.encode(prompt)
  stream = TextStream(model, params, tokenizer, rules)
  stream.read(prompt)
  parts = [*stream.write(key, LENGTH)]
  expected = sample(model, params, key, tokens, LENGTH, **rules._asdict())[0]
  assert len(parts) == 3
  text = tokenizer.decode(np.concatenate([tokens, expected]))
  assert prompt + "".join(parts) == text == stream.text


def test_a_part_does_not_take_the_memory_of_the_whole_text(key):
  model, params = make_model(CHARACTERS, key)
  stream = TextStream(model, params, CHARACTERS, RULES)
  stream.read("Thou")
  assert len(next(stream.write(key, 10**15))) == PART


def test_a_text_is_what_sample_draws_with_other_kinds_of_key(key):
  """The program of one kind must not draw with keys of another."""
  model, params = make_model(CHARACTERS, key)
  prompt = CHARACTERS.encode("Thou")
  for kind in ("rbg", "unsafe_rbg"):  # keys of one shape
    stream = TextStream(model, params, CHARACTERS, RULES)
    with jax.default_prng_impl(kind):
      key = jax.random.key(2)
      stream.read("Thou")
      parts = stream.write(key, 9)  # drawn outside of this context
      expected = sample(model, params, key, prompt, 9, **RULES._asdict())[0]
    drawn = CHARACTERS.encode("".join(parts))
    assert drawn.tolist() == expected.tolist()


def test_a_text_may_be_read_and_written_in_turns(key):
  """It continues as after one prompt that holds all of the text so far."""
  model, params = make_model(CHARACTERS, key)
  stream = TextStream(model, params, CHARACTERS, RULES)
  stream.read("Thou ")
  first = "".join(stream.write(key, 7))
  stream.read("art")
  then = "".join(stream.write(jax.random.key(1), 40))
  whole = TextStream(model, params, CHARACTERS, RULES)
  whole.read("Thou " + first + "art")
  assert "".join(whole.write(jax.random.key(1), 40)) == then
  assert whole.text == stream.text and len(then) == 40


def test_a_text_of_several_parts_is_read_to_its_end(key):
  model, params = make_model(CHARACTERS, key)
  stream = TextStream(model, params, CHARACTERS, RULES)
  stream.read(VERSE)
  assert PART < len(VERSE) < 2 * PART and stream.text == VERSE
  tokens = CHARACTERS.encode(VERSE)
  drawn = sample(model, params, key, tokens, 20, **RULES._asdict())[0]
  assert "".join(stream.write(key, 20)) == CHARACTERS.decode(drawn)


def test_what_a_stream_cannot_read_or_write_is_refused(key):
  model, params = make_model(CHARACTERS, key)
  with pytest.raises(ValueError, match="top_p must be in"):
    TextStream(model, params, CHARACTERS, RULES._replace(top_p=0.0))
  stream = TextStream(model, params, CHARACTERS, RULES)
  with pytest.raises(ValueError, match="must be read before one is written"):
    stream.write(key, 3)
  with pytest.raises(ValueError, match="at least one character"):
    stream.read("")
  with pytest.raises(ValueError, match="character '§' at position 1 is not"):
    stream.read("a§")
  words = TextStream(*make_model(WORDS, key), WORDS, RULES)
  with pytest.raises(ValueError, match=r"not in the vocabulary .*: 'foul'$"):
    words.read("thou foul")
  for tokens in ([-1, -1], [CHARACTERS.size], [0.7], []):
    with pytest.raises(ValueError, match=r"^the prompt must be "):
      stream.read_tokens(np.array(tokens))
  larger = CharTokenizer.from_text(VERSE + "§")  # another model's
  with pytest.raises(
    ValueError, match=rf"integers in \[0, {larger.size - 1}\)"
  ):
    TextStream(model, params, larger, RULES).read("§")
  assert stream.text == ""
  smaller = CharTokenizer(CHARACTERS.symbols[:-1])
  stream = TextStream(model, params, smaller, RULES)
  with pytest.raises(ValueError, match=rf"integers in \[0, {smaller.size}\)"):
    stream.read_tokens(np.array([0, smaller.size]))
  stream.read("art")
  for length in (-1, 2.5):
    with pytest.raises(
      ValueError, match=r"^length must be an integer ≥ 0, got"
    ):
      stream.write(key, length)
  assert [*stream.write(key, 0)] == [] and stream.text == "art"


def test_a_failure_leaves_a_stream_as_it_was(key, monkeypatch):
  """A drawn token that the tokenizer lacks, or Ctrl-C while one is awaited."""
  model, params = make_model(CHARACTERS, key)
  smaller = CharTokenizer(CHARACTERS.symbols[:-9])
  stream = TextStream(model, params, smaller, RULES)
  stream.read("a")
  message = (
    rf"^drawn tokens must be integers in \[0, {smaller.size}\), got int32"
  )
  with pytest.raises(ValueError, match=message):
    list(stream.write(key, LENGTH))
  begun, advance = stream.text, text_stream._advance

  class Interrupted:  # stands for tokens that are still being drawn
    def __array__(self, *arguments, **options):
      raise KeyboardInterrupt

  def interrupted(model):
    return lambda *arguments: (advance(model)(*arguments)[0], Interrupted())

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(text_stream, "_advance", interrupted)
    list(stream.write(key, LENGTH))
  stream.read("e")
  whole = TextStream(model, params, smaller, RULES)
  whole.read(begun + "e")
  assert whole.text == stream.text
  assert worst(whole._carry, stream._carry) < 1e-12


def test_a_key_of_another_kind_is_refused(key):
  model, params = make_model(CHARACTERS, key)
  stream = TextStream(model, params, CHARACTERS, RULES)
  stream.read("a")
  message = r"^key must be of the kind three.*, got rbg"
  with pytest.raises(ValueError, match=message):
    stream.write(jax.random.key(0, impl="rbg"), 3)


def test_a_text_is_read_with_any_default_kind_of_key(key):
  model, params = make_model(CHARACTERS, key)
  with jax.default_prng_impl("rbg"):
    stream = TextStream(model, params, CHARACTERS, RULES)
    stream.read("a")
    assert len("".join(stream.write(jax.random.key(0), 3))) == 3


def test_a_text_of_another_length_compiles_no_other_program(key):
  model, params = make_model(CHARACTERS, key)
  # A top_k of its own: the programs of another test would be compiled already.
  rules = RULES._replace(top_k=8)
  stream = TextStream(model, params, CHARACTERS, rules)
  with count_programs() as programs:
    stream.read("a")
    assert len([*stream.write(key, LENGTH)]) == 3
    before = len(programs)
    assert len([*stream.write(key, LENGTH + 1)]) == 3
  assert len(programs) == before > 0


def test_a_text_without_line_breaks_is_decoded_once(key, monkeypatch):
  """Otherwise the time of writing would grow as the square of its length."""
  tokenizer = WordTokenizer.from_text("more and 'more' and more", min_count=1)
  model, params = make_model(tokenizer, key)
  rules = RULES._replace(suppress_tokens=tokenizer.unknown_tokens)
  stream = TextStream(model, params, tokenizer, rules)
  decoded = []
  spaced = word_tokenizer._space_between

  def counted(*arguments):
    decoded.append(arguments)
    return spaced(*arguments)

  monkeypatch.setattr(word_tokenizer, "_space_between", counted)
  stream.read("and 'more'")
  known = len(decoded)
  parts = [*stream.write(key, 4 * PART)]
  assert len(decoded) - known == 4 * PART and len(parts) == 4
  assert stream.text == "and 'more'" + "".join(parts)
