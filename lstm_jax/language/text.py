"""Text files, and their split into training, validation and development."""

import re
from pathlib import Path
from typing import TypeVar

import numpy as np

Text = TypeVar("Text", str, np.ndarray)
# `middle_slice` cuts a text at the first line after blank lines, preferably at
# the heading of an act or a scene. A match begins after a line that is not
# blank: beginning at each of many blank ones would take quadratic time.
PARAGRAPH = re.compile(r"(?:(?<=\S)|\A)[^\S\n]*\n(?:[^\S\n]*\n)+(?=[^\S\n]*\S)")
SCENE = re.compile(r"[^\S\n]*(?i:act|scene)\s+(?i:[ivxlc]+|\d+)\b")
SCENE_REACH = 4  # a scene within 1/4 of the slice's length is near enough


def read_text(path: str | Path) -> str:
  r"""Return the text of a UTF-8 file, with every line ending as "\n".

  A byte order mark at its beginning is removed.

  Raises:
    ValueError: the file is missing, unreadable, empty or not UTF-8.
  """
  try:
    text = Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} "
      f"at offset {error.start}"
    ) from None
  except OSError as error:
    reason = (error.strerror or str(error)).lower()
    raise ValueError(f"{path} cannot be read: {reason}") from None
  if not text:
    raise ValueError(f"{path} is empty")
  return text.replace("\r\n", "\n").replace("\r", "\n")


def split(tokens: Text, val_fraction: float) -> tuple[Text, Text]:
  """Split tokens into a training part and, at the end, a validation part.

  Args:
    tokens: [N], or a text, which is split between two characters.
    val_fraction: the validation part's share of the tokens, in (0, 1).

  Returns:
    (training, validation).

  Raises:
    ValueError: val_fraction is not between 0 and 1, or a part has fewer than
      the two tokens that one prediction needs.
  """
  if not 0 < val_fraction < 1:
    raise ValueError(f"val_fraction must be in (0, 1), got {val_fraction}")
  val_fraction = float(val_fraction)  # float16 has three digits
  cut = int(len(tokens) * (1 - val_fraction) + 1e-6)  # 100 (1 − 0.9) is 9.99…
  parts = tokens[:cut], tokens[cut:]
  if min(len(part) for part in parts) < 2:
    raise ValueError(
      f"the corpus is too short: of {len(tokens)} tokens, a val_fraction of "
      f"{val_fraction} leaves {len(parts[0])} for training and "
      f"{len(parts[1])} for validation, and each needs at least 2"
    )
  return parts


def middle_slice(text: str, fraction: float) -> tuple[int, int]:
  """Return where a slice from the middle of a text begins and ends.

  A program may cut this slice out of the training text, as a development split.
  The requested slice is the share `fraction` around the middle. Each of its
  ends moves to the nearest beginning of a paragraph: the first line after blank
  lines, which begins a speech in a play. If an act or a scene ("SCENE II.")
  begins within a quarter of the slice's length, that end moves there instead.
  Where both ends do, whole scenes are cut out.

  Args:
    text: the text.
    fraction: the slice's share of the text, in (0, 1).

  Returns:
    Indices of the slice's first character, and of the first after it.

  Raises:
    ValueError: the fraction is not in (0, 1), or the paragraphs are too long:
      the slice has less than half of the requested length or more than twice.
  """
  if not 0 < fraction < 1:
    raise ValueError(f"fraction must be in (0, 1), got {fraction}")
  fraction = float(fraction)  # float16 has three digits
  wished = len(text) * (1 - fraction) / 2, len(text) * (1 + fraction) / 2
  length = wished[1] - wished[0]
  starts = [found.end() for found in PARAGRAPH.finditer(text)]
  scenes = [start for start in starts if SCENE.match(text, start)]

  def nearest(place: float) -> int:
    near = [s for s in scenes if abs(s - place) <= length / SCENE_REACH]
    return min(near or starts, key=lambda s: abs(s - place), default=0)

  first, last = map(nearest, wished)
  if not 0 < length / 2 <= last - first <= 2 * length:
    raise ValueError(
      f"no slice of about {length:,.0f} characters can be cut from the middle "
      f"of {len(text):,} between paragraphs: {len(starts):,} begin after a "
      f"blank line, and the nearest leave {last - first:,} characters"
    )
  return first, last
