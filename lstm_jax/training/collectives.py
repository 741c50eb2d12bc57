"""What devices send each other in a compiled program, read from its text.

A loop's instructions are counted once, whatever its number of turns: that there
are any is what matters.

  >>> text = '''
  ... %body (p: f32[2]) -> f32[2] {
  ...   ROOT %g = f32[4]{0} all-gather(%p), dimensions={0}
  ... }
  ... ENTRY %main (p: f32[2]) -> f32[2] {
  ...   %w = f32[2]{0} while(%p), condition=%c, body=%body
  ...   ROOT %r = (f32[2,3]{1,0}, bf16[]) all-reduce(%w, %w), to_apply=%add
  ... }
  ... '''
  >>> for collective in collectives(text):
  ...   print(collective)
  Collective(kind='all-gather', bytes=16, looped=True)
  Collective(kind='all-reduce', bytes=26, looped=False)
"""

import math
import re
from typing import NamedTuple

KINDS = (
  "all-reduce",
  "all-gather",
  "all-to-all",
  "reduce-scatter",
  "collective-permute",
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%(\S+) .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_BODY = re.compile(r"\bbody=%([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One instruction by which devices exchange numbers."""

  kind: str  # as XLA calls it
  bytes: int  # of its result, on each device
  looped: bool  # whether it runs in a loop, once a turn


def collectives(text: str) -> list[Collective]:
  """Return the collectives of a program, in the order of its text.

  Args:
    text: of a compiled program, `jit(f).lower(...).compile().as_text()`.
  """
  computations: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    if begins := _COMPUTATION.match(line):
      lines = computations.setdefault(begins[1], [])
    else:
      lines.append(line)
  looped = _called_by_loops(computations)
  return [
    Collective(found[2], _bytes(found[1]), name in looped)
    for name, lines in computations.items()
    for line in lines
    if (found := _COLLECTIVE.search(line))
  ]


def _called_by_loops(computations: dict[str, list[str]]) -> set[str]:
  """Return the bodies of loops, and what they call."""
  called = {
    name: set(_NAME.findall("\n".join(lines))) & computations.keys()
    for name, lines in computations.items()
  }
  text = "\n".join(line for lines in computations.values() for line in lines)
  reached, ahead = set(), set(_BODY.findall(text))
  while ahead:
    reached |= ahead
    ahead = set().union(*(called[name] for name in ahead)) - reached
  return reached


def _bytes(shapes: str) -> int:
  """Return the bytes of all arrays of a type, such as (f32[2,3], bf16[])."""
  total = 0
  for kind, bits, sizes in _ARRAY.findall(shapes):
    width = 8 if kind == "pred" else int(bits)
    numbers = math.prod(int(size) for size in sizes.split(",") if size)
    total += numbers * width // 8
  return total
