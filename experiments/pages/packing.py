"""Arrays and JSON inside an HTML page; signals and norms as bytes.

A page is one file that a browser opens from the disk. Its template has a place
for head.html, which all pages share, and one for data blocks: script elements
of a type that no browser runs, whose text is base64 of gzip and so cannot be
markup. `unpack` of head.html reads them. A script that the template names by
src, a file beside the template, is copied into the page.

A value v of a signal (a state or a gate) and a gradient norm are stored as one
of 256 levels q, a byte. Signals other than gates are signed:

  gate    v in [0, 1]                   q = round(255 v)
  signed  v in [−m, m], m = max |v|     q = 128 + round(127 v / m)
  norm    v in [10ᵃ, 10ᵇ]               q = 1 + round(254 (log₁₀ v − a)/(b − a))

Each unit has an m of its own, and the value 0 of a signed signal is exact. The
relative error of a norm is at most 5.6 %, but norms below 10⁻¹² of the largest
are stored as 10⁻¹² of it. A norm of 0 is level 0.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.trainer.corpus import check_is_no_corpus
from experiments.trainer.files import check_output, write_bytes
from experiments.trainer.format import format_bytes
from experiments.trainer.run_dir import check_outside_runs

# What a template includes, and where.
HEAD, HEAD_PLACE = Path(__file__).with_name("head.html"), "<!-- head -->\n"
DATA_PLACE = "<!-- data -->"
SCRIPT_PLACE = re.compile(r'<script src="([a-z_]+\.js)"></script>')
DECADES = 12.0  # powers of ten that the norms of an array span at most


class Norms(NamedTuple):
  """Quantized norms."""

  levels: np.ndarray  # uint8, 0 for a norm of 0
  low: float  # a, log₁₀ of level 1
  high: float  # b, log₁₀ of level 255


class Blobs:
  """The arrays of a page, each a data block of its own."""

  def __init__(self) -> None:
    self._scripts: list[str] = []

  def add(self, array: np.ndarray) -> int:
    """Add an array and return the number of its block."""
    number = len(self._scripts)
    self._scripts.append(script(f"blob{number}", array.tobytes()))
    return number

  def page(self, template: Path, header: dict[str, Any]) -> str:
    """Return a template filled with head.html, data blocks and the header.

    The header is the page's data as JSON, and may refer to blocks by number.

    Raises:
      ValueError: the header has a number that is infinite or NaN.
    """
    packed = script("header", json.dumps(header, allow_nan=False).encode())
    head = HEAD.read_text(encoding="utf-8")
    text = template.read_text(encoding="utf-8").replace(HEAD_PLACE, head)

    def included(place: re.Match[str]) -> str:
      code = template.with_name(place[1]).read_text(encoding="utf-8")
      return f"<script>\n{code}</script>"

    before, after = SCRIPT_PLACE.sub(included, text).split(DATA_PLACE)
    return "\n".join([before, *self._scripts, packed, after])


def script(name: str, data: bytes) -> str:
  """Return the script element of the data block whose id is `name`."""
  packed = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")
  return f'<script type="text/plain" id="{name}">{packed}</script>'


class Page(NamedTuple):
  """A page that was written."""

  path: Path
  size: int  # bytes


def check_out(path: Path, hashes: Iterable[str], page: str = "") -> None:
  """Raise ValueError if a program would replace what a run needs.

  Args:
    path: the file to be written, the program's --out.
    hashes: SHA-256 of the corpora of the runs that it reads.
    page: the only file that may be written in a run directory; "" for none.
  """
  check_outside_runs("out", path, page)
  check_output(path)
  for sha256 in hashes:
    check_is_no_corpus("out", path, sha256)


def write_page(path: Path, text: str, console: Console) -> Page:
  """Write a page, and print where it is and how large."""
  data = text.encode()
  write_bytes(path, data)
  console.print(f"page    {path}: {format_bytes(len(data))}", soft_wrap=True)
  return Page(path, len(data))


def quantize_gate(values: np.ndarray) -> np.ndarray:
  """Return values in [0, 1] as uint8."""
  return np.rint(255 * values).astype(np.uint8)


def quantize_signed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return signals [H, N] as uint8, and each unit's largest magnitude, [H]."""
  largest = np.abs(values).max(axis=1)
  scaled = values / np.where(largest > 0, largest, 1)[:, None]
  return (128 + np.rint(127 * scaled)).astype(np.uint8), largest


def quantize_norms(values: np.ndarray) -> Norms:
  """Return finite norms ≥ 0 on a logarithmic scale."""
  positive = values > 0
  if not positive.any():
    return Norms(np.zeros(values.shape, np.uint8), 0.0, 1.0)
  logs = np.log10(values, where=positive, out=np.zeros(values.shape))
  high = float(logs[positive].max())
  low = max(float(logs[positive].min()), high - DECADES)
  span = max(high - low, 1e-3)  # above 0, also if all norms are equal
  levels = 1 + np.rint(254 * ((logs - low) / span).clip(0, 1))
  return Norms((levels * positive).astype(np.uint8), low, low + span)
