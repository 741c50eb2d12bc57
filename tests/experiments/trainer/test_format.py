"""The losses of a text as a run prints them."""

import math
import re

from experiments.trainer.format import format_losses
from lstm_jax.language import CharTokenizer, WordTokenizer


def numbers(text):
  return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_an_unknown_word_that_comes_again_costs_less_than_the_first():
  """As in a pass over the whole text, which is what the loss is of."""
  tokenizer = WordTokenizer.from_text("a b a b c\n", 2)
  text = "a thee b thee a thee"  # 6 tokens and 20 characters
  spelling = tokenizer.spelling_nats(text, cached=True).sum()
  assert spelling < tokenizer.spelling_nats(text).sum() - 1
  each = (5 * 2.0 + spelling) / 19
  shown = format_losses(2.0, tokenizer, text)
  assert shown.startswith("2.0000 nats per word, perplexity 7.4, ")
  assert numbers(shown)[2:] == [round(each, 4), round(each / math.log(2), 4)]


def test_the_loss_of_characters_is_in_nats_and_in_bits():
  shown = format_losses(math.log(2), CharTokenizer("ab"), "abba")
  assert shown == "0.6931 nats per character (1.0000 bits)"
