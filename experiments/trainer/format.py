"""Losses, tokens, bytes and tables as programs print them."""

import math
import re

import numpy as np
from rich.align import AlignMethod
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.rule import Rule
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from lstm_jax.language import Tokenizer
from lstm_jax.language.evaluate import nats_per_character

# Characters that a terminal obeys, but for the line break and the tab.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape_controls(text: str) -> str:
  r"""Return a text with each control character as an escape, such as \x1b."""
  return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def format_nats(nats: float) -> str:
  """Return a loss with four decimals; three digits if it is tiny or huge."""
  usual = nats == 0 or 1e-3 <= abs(nats) < 1e4
  return f"{nats:.4f}" if usual else f"{nats:.3g}"


def format_loss(nats: float, tokenizer: Tokenizer) -> str:
  """Return "loss … nats per character", or "perplexity … per word"."""
  if tokenizer.unit == "character":
    return f"loss {format_nats(nats)} nats per character"
  return f"perplexity {perplexity(nats):,.1f} per {tokenizer.unit}"


def format_losses(nats: float, tokenizer: Tokenizer, text: str) -> str:
  """Return the stateful loss of a text, per token and per character.

  Args:
    nats: mean over the text's tokens[1:].
    tokenizer: the tokenizer of the text.
    text: the text.
  """
  total = nats * (len(tokenizer.encode(text)) - 1)
  per_character = nats_per_character(tokenizer, text, total, cached=True)
  losses = f"{format_nats(nats)} nats per {tokenizer.unit}"
  if tokenizer.unknown_tokens:
    losses += (
      f", perplexity {perplexity(nats):,.1f}, {format_nats(per_character)} "
      "nats per character with unknown words spelled out"
    )
  return f"{losses} ({format_nats(per_character / math.log(2))} bits)"


def perplexity(nats: float) -> float:
  """Return exp(nats); infinity where that overflows."""
  with np.errstate(over="ignore"):
    return float(np.exp(nats))


def format_vocabulary(tokenizer: Tokenizer, val_tokens: np.ndarray) -> str:
  """Return how many tokens are known, and how many there are to validate on."""
  count = f"{len(val_tokens):,} for validation"
  if not tokenizer.unknown_tokens:
    return f"{tokenizer.size} distinct, {count}"
  known = tokenizer.size - len(tokenizer.unknown_tokens)
  unknown = np.isin(val_tokens, tokenizer.unknown_tokens).mean()
  return (
    f"{known:,} {tokenizer.unit}s known, {count}, {unknown:.1%} of them unknown"
  )


def counted(count: int, noun: str) -> str:
  """Return a number and what it counts, in the plural unless it is 1."""
  return f"{count:,} {noun}{'s' * (count != 1)}"


def format_bytes(count: int) -> str:
  """Return a number of bytes in MB or GB."""
  return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def format_operations(count: int) -> str:
  """Return a number of floating-point operations in MFLOP to PFLOP."""
  units = (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M")
  size, prefix = next((u for u in units if count >= u[0]), units[-1])
  return f"{count / size:,.2f} {prefix}FLOP"


def format_milliseconds(ms: float) -> str:
  """Return whole milliseconds, or below 10 at most two digits of them."""
  return f"{ms:.0f}" if ms >= 9.95 else f"{ms:.2g}"


def print_title(
  title: str, console: Console, align: AlignMethod = "center"
) -> None:
  """Print a title in a rule; without one where the rule would cut it off."""
  text = Text(title)  # no [markup]
  # Rich keeps 4 or 2 columns for the line and the spaces beside the title.
  fits = text.cell_len + (4 if align == "center" else 2) <= console.width
  console.print(Rule(text, align=align) if fits else text, soft_wrap=not fits)


def print_sample(text: str, console: Console) -> None:
  """Print a sample; in a terminal, with its control characters escaped."""
  if console.is_terminal:
    console.print(Text(escape_controls(text)), soft_wrap=True)
  else:  # a Text would lose some control characters, and expand tabs
    console.print(Segments([Segment(f"{text}\n")]), soft_wrap=True)


def number_table(first: str, *names: str, title: str | None = None) -> Table:
  """Return an empty table: a column of text, and columns of numbers."""
  table = Table(
    title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
  )
  table.add_column(first, overflow="fold")
  for name in names:
    table.add_column(name, justify="right", no_wrap=True)
  return table


def print_table(table: Table, console: Console) -> None:
  """Print a table of `number_table` with all digits of its numbers.

  Where they do not fit, the table is wider than the console.
  """
  whole = console.options.update(max_width=10_000)
  width = Measurement.get(console, whole, table).maximum
  if width > console.width:
    table.width = width
  console.print(table, crop=False)
