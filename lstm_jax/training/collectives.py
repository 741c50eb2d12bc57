"""Find the collectives of a compiled program: what its devices communicate.

A collective inside a loop is listed once, however often it runs. An
asynchronous collective is two instructions, "-start" and "-done"; only the
second is read, whose type is that of the result.

  >>> text = '''
  ... %body (p: f32[2]) -> f32[4] {
  ...   ROOT %g = f32[4]{0} all-gather(%p), dimensions={0}
  ... }
  ... %c (p: f32[2]) -> pred[] {
  ...   %n = f32[] all-reduce(%p), to_apply=%add
  ... }
  ... ENTRY %main (p: f32[2]) -> f32[2] {
  ...   %w = f32[2]{0} while(%p), condition=%c, body=%body
  ...   %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%w), dimensions={0}
  ...   %d = f32[8]{0} all-gather-done(%s)
  ...   ROOT %r = (f32[2,3]{1,0}, bf16[]) all-reduce(%w, %w), to_apply=%add
  ... }
  ... '''
  >>> for collective in find_collectives(text):
  ...   print(collective)
  Collective(kind='all-gather', bytes=16, looped=True)
  Collective(kind='all-reduce', bytes=4, looped=True)
  Collective(kind='all-gather', bytes=32, looped=False)
  Collective(kind='all-reduce', bytes=26, looped=False)
"""

import math
import re
from typing import NamedTuple

_KINDS = (
  "all-reduce",
  "all-gather",
  "ragged-all-to-all",
  "all-to-all",
  "reduce-scatter",
  "collective-permute",
  "collective-broadcast",
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%(\S+) .*\{$")
_COLLECTIVE = re.compile(
  rf" = (?P<shapes>.*?) (?P<kind>{'|'.join(_KINDS)})(?:-done)?\("
)
_LOOP = re.compile(r"\b(?:body|condition)=%([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One collective instruction."""

  kind: str  # XLA's name for it
  bytes: int  # of its result, on each device
  looped: bool  # whether a loop's body or condition holds or calls it


def find_collectives(text: str) -> list[Collective]:
  """Return the collectives of a program, in the order of its text.

  Args:
    text: HLO of a compiled program, from
      `jit(f).lower(...).compile().as_text()`.
  """
  computations: dict[str, list[str]] = {}
  lines: list[str] = []  # at first, those before all computations
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      lines = computations.setdefault(header[1], [])
    else:
      lines.append(line)
  looped = _inside_loops(computations)
  return [
    Collective(found["kind"], _bytes(found["shapes"]), name in looped)
    for name, lines in computations.items()
    for line in lines
    if (found := _COLLECTIVE.search(line))
  ]


def _inside_loops(computations: dict[str, list[str]]) -> set[str]:
  """Return the names of the computations that run inside a loop."""
  called = {
    name: set(_NAME.findall("\n".join(lines))) & computations.keys()
    for name, lines in computations.items()
  }
  text = "\n".join(line for lines in computations.values() for line in lines)
  reached, frontier = set(), set(_LOOP.findall(text))
  while frontier:
    reached |= frontier
    frontier = set().union(*(called[name] for name in frontier)) - reached
  return reached


def _bytes(shapes: str) -> int:
  """Return the bytes of all arrays of a type, such as (f32[2,3], bf16[])."""
  total = 0
  for dtype, bits, sizes in _ARRAY.findall(shapes):
    width = 8 if dtype == "pred" else int(bits)
    num_elements = math.prod(int(size) for size in sizes.split(",") if size)
    total += num_elements * width // 8
  return total
