"""Data inside a page: base64 of gzip, of which no character can be markup.

A page of `experiments` is one file that a browser opens from the disk. Its
template has a place for script elements that never run, since a browser knows
no language of their type; the page's own script unpacks what they hold.
"""

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLACE = "<!-- data -->"  # in a template


def script(name: str, data: bytes) -> str:
  """Return the script element that holds data under a name."""
  packed = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")
  return f'<script type="text/plain" id="{name}">{packed}</script>'


def page(template: Path, header: dict[str, Any], scripts: Iterable[str]) -> str:
  """Return a template with scripts and a header, as JSON, in their place."""
  told = script("header", json.dumps(header, allow_nan=False).encode())
  before, after = template.read_text(encoding="utf-8").split(PLACE)
  return "\n".join([before, *scripts, told, after])
