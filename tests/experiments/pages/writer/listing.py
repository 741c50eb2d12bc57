"""Read the lists of probabilities of the page that writes."""

from typing import NamedTuple


class Row(NamedTuple):
  """A token of a list."""

  kind: str  # its class: "actual", "left-out" or ""
  symbol: str
  own: float  # the probability that the model gives it
  drawn: float  # the probability with which it is drawn
  figure: str  # `drawn` as the page writes it; "–" for 0


def listed(chromium, name):
  """Return the rows of a list."""
  rows = chromium.run(
    "return [...$(args[0]).children].map((item) => {"
    " const [symbol, bar, figure] = item.children;"
    " const [own, drawn] = ['--own', '--drawn'].map("
    "  (name) => Number(bar.style.getPropertyValue(name)));"
    " return [item.className, symbol.textContent, own, drawn,"
    "  figure.textContent]; })",
    name,
  )
  return [Row(*row) for row in rows]


def percent(p):
  """Return a probability as the page writes it."""
  digits = 2 if p < 0.0095 else 1 if p < 0.0995 else 0
  return f"{100 * p:.{digits}f} %"
