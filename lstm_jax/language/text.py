"""Text files, and their split into a training and a validation part."""

from pathlib import Path
from typing import TypeVar

import numpy as np

Text = TypeVar("Text", str, np.ndarray)


def read_text(path: str | Path) -> str:
  r"""Return the text of a UTF-8 file, with every line ending as "\n".

  Raises:
    ValueError: the file is missing, unreadable, empty or not UTF-8.
  """
  try:
    text = Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"corpus {path} is not UTF-8: byte 0x{error.object[error.start]:02x} "
      f"at offset {error.start}"
    ) from None
  except OSError as error:
    reason = (error.strerror or str(error)).lower()
    raise ValueError(f"corpus {path} cannot be read: {reason}") from None
  if not text:
    raise ValueError(f"corpus {path} is empty")
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
  cut = int(len(tokens) * (1 - val_fraction) + 1e-6)  # 100 (1 − 0.9) is 9.99…
  parts = tokens[:cut], tokens[cut:]
  if min(len(part) for part in parts) < 2:
    raise ValueError(
      f"the corpus is too short: of {len(tokens)} tokens, a val_fraction of "
      f"{val_fraction} leaves {len(parts[0])} for training and "
      f"{len(parts[1])} for validation, and each needs at least 2"
    )
  return parts
