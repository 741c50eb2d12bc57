"""Losses, times and tables as programs print them."""

import io
import math
import re
import sys

import pytest
from rich.console import Console

from experiments import cli
from experiments.trainer.format import (
  CONTROLS,
  format_losses,
  format_milliseconds,
  format_nats,
  number_table,
  print_sample,
  print_table,
  print_title,
)
from lstm_jax.language import CharTokenizer, WordTokenizer


def numbers(text):
  return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_an_unknown_word_that_comes_again_costs_less_than_the_first():
  """As in a pass over the whole text, which is what the loss is of."""
  tokenizer = WordTokenizer.from_text("a b a b c\n", 2)
  text = "a thee b thee a thee"  # 6 tokens and 20 characters
  spelling = tokenizer.spelling_nats(text, cached=True).sum()
  assert spelling < tokenizer.spelling_nats(text).sum() - 1
  # The loss is of all tokens but the first, which is the one character "a".
  each = (5 * 2.0 + spelling) / 19
  shown = format_losses(2.0, tokenizer, text)
  assert shown.startswith("2.0000 nats per word, perplexity 7.4, ")
  assert numbers(shown)[2:] == [round(each, 4), round(each / math.log(2), 4)]


def test_the_loss_of_characters_is_in_nats_and_in_bits():
  shown = format_losses(math.log(2), CharTokenizer("ab"), "abba")
  assert shown == "0.6931 nats per character (1.0000 bits)"


def test_a_tiny_or_huge_loss_keeps_its_first_digits():
  losses = {0.0: "0.0000", 1.1575e-5: "1.16e-05", 9.9e-4: "0.00099"}
  losses |= {1.1e-3: "0.0011", 9999.0: "9999.0000", 12345.6: "1.23e+04"}
  assert {nats: format_nats(nats) for nats in losses} == losses
  shown = format_losses(1.1575e-5, CharTokenizer("ab"), "abba")
  assert shown == "1.16e-05 nats per character (1.67e-05 bits)"


@pytest.mark.parametrize(
  ("ms", "shown"), [(0.634, "0.63"), (4, "4"), (9.96, "10"), (1234.5, "1234")]
)
def test_a_time_below_10_ms_has_at_most_two_digits(ms, shown):
  assert format_milliseconds(ms) == shown


@pytest.mark.parametrize("width", [20, 37, 80])
def test_a_narrow_console_cuts_off_no_number_and_no_label(width):
  table = number_table("protocol", "nats/char", "perplexity")
  table.add_row("cold windows of 256", "1.9465", "1,072.179")
  console = Console(file=io.StringIO(), width=width)
  print_table(table, console)
  text = console.file.getvalue()
  for whole in ("cold windows of 256", "1.9465", "1,072.179"):
    assert whole in text


def test_a_title_that_a_rule_would_cut_off_stands_alone():
  console = Console(file=io.StringIO(), width=20)
  for title in ("x" * 16, "x" * 17, "x" * 70):
    print_title(title, console)
  shown = f"─ {'x' * 16} ─\n{'x' * 17}\n{'x' * 70}\n"
  assert console.file.getvalue() == shown


def test_a_sample_is_printed_as_it_is_where_there_is_no_terminal():
  text = "\tif x:\x0c\n\x00\x07\x08\x0b\x1b[31m\u2028 " + "long " * 40
  console = Console(file=io.StringIO(), width=20)
  print_sample(text, console)
  assert console.file.getvalue() == f"{text}\n"


def test_what_a_file_says_cannot_act_on_a_terminal(capsys, monkeypatch):
  """In an error, in a line and in a table."""
  # `_fail` replaces it.
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  text = "\x1b]0;title\x07\x9b31m"
  table = number_table(text)
  table.add_row(text)
  cli.make_console().print(text, table)
  assert cli._fail(ValueError(text), 2) == 2
  out, err = capsys.readouterr()
  assert "\\x1b]0;title\\x07\\x9b31m" in out and "\\x1b]0;title" in err
  assert not CONTROLS.search(out + err)
