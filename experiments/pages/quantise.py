"""Signals in a byte each, as a page stores them.

  gate    v in [0, 1]              q = round(255 v)
  signed  v in ±m, a unit's range  q = 128 + round(127 v / m)
  norm    v in 10ᵃ to 10ᵇ          q = 1 + round(254 (log₁₀ v − a) / (b − a))

so that 0 is exact in a signed signal, and a norm's error is relative: at most
5.6 %, as its range ends 12 powers of ten below the largest. Norms of 0 are 0,
and those below the range are at its end.
"""

from typing import NamedTuple

import numpy as np

DECADES = 12.0  # of the norms


class Norms(NamedTuple):
  """Quantised norms."""

  levels: np.ndarray  # uint8, 0 for none
  low: float  # a, log₁₀ of level 1
  high: float  # b, log₁₀ of level 255


def quantise_gate(values: np.ndarray) -> np.ndarray:
  """Return values in [0, 1] as uint8."""
  return np.rint(255 * values).astype(np.uint8)


def quantise_signed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return signals [H, N] as uint8, and each unit's largest value, [H]."""
  largest = np.abs(values).max(axis=1)
  unit = values / np.where(largest > 0, largest, 1)[:, None]
  return (128 + np.rint(127 * unit)).astype(np.uint8), largest


def quantise_norms(values: np.ndarray) -> Norms:
  """Return norms ≥ 0 on a logarithmic scale."""
  some = values > 0
  if not some.any():
    return Norms(np.zeros(values.shape, np.uint8), 0.0, 1.0)
  logs = np.log10(values, where=some, out=np.zeros(values.shape))
  high = float(logs[some].max())
  low = max(float(logs[some].min()), high - DECADES)
  span = max(high - low, 1e-3)
  levels = 1 + np.rint(254 * ((logs - low) / span).clip(0, 1))
  return Norms((levels * some).astype(np.uint8), low, low + span)
