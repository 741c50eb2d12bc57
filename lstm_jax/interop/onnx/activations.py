"""The activations of ONNX's recurrent operators, and those of a cell.

For each direction, an operator lists the activations of the gates (f), of the
candidate (g) and, in an LSTM, of the output (h). An RNN has only one. The
arguments of `with_activations` have the same order. The attributes
activation_alpha and activation_beta hold the parameters of those activations of
the list that have any. Of the activations known here, only HardSigmoid has: its
alpha is the slope, and its beta is ½. Attributes are float32; they are read as
a short decimal or a simple fraction if either is the same in float32, so that
slopes of 0.2 and ⅙ are read exactly.

Both directions have one cell here, and so the same activations.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from lstm_jax.cells import (
  RELU,
  SIGMOID,
  TANH,
  Activation,
  gru,
  gru_reset_before,
  lstm,
  make_hard_sigmoid,
  rnn,
)
from lstm_jax.cells.cell import Cell
from lstm_jax.cells.made import MadeCell

STANDARD = {
  "LSTM": (SIGMOID, TANH, TANH),
  "GRU": (SIGMOID, TANH),
  "RNN": (TANH,),
}
NAMES = {SIGMOID: "Sigmoid", TANH: "Tanh", RELU: "Relu"}
HARD_SIGMOID = make_hard_sigmoid(0.2)  # ONNX's default alpha
KNOWN = ", ".join([*NAMES.values(), "HardSigmoid"])
# Functions from activations to a cell, by the cell that has the standard ones.
MAKERS: dict[Cell, Callable[..., Cell]] = {
  lstm: lstm.with_activations,
  gru: gru.with_activations,
  gru_reset_before: gru_reset_before.with_activations,
  rnn: rnn.with_activation,
}


def base_cell(cell: Cell) -> Cell:
  """Return the cell with the same equations and the standard activations."""
  # A `MadeCell` is a result of `with_activations` or `rnn.with_activation`.
  return cell.module if isinstance(cell, MadeCell) else cell


def read_activations(
  op_type: str, values: dict[str, Any], num_directions: int
) -> tuple[Activation, ...]:
  """Remove the activations from a node's attributes, and return them.

  Names are compared without case, as many programs do.

  Args:
    op_type: LSTM, GRU or RNN.
    values: the attributes by name, as Python's numbers, strings and lists.
    num_directions: 1 or 2.

  Raises:
    ValueError: the operator has another number of activations, one is not known
      here, the two directions have different ones, or activation_alpha or
      activation_beta has a value that is not supported, or one too many.
  """
  names = values.pop("activations", [])
  alphas = list(values.pop("activation_alpha", []))
  betas = list(values.pop("activation_beta", []))
  standard = STANDARD[op_type]
  if not names:
    names = [NAMES[activation] for activation in standard] * num_directions
  count = len(standard) * num_directions
  if len(names) != count:
    raise ValueError(
      f"activations of {op_type} must be {count} names, {len(standard)} for "
      f"each direction, got {', '.join(names)}"
    )
  by_name = {name.lower(): activation for activation, name in NAMES.items()}
  found = []
  for name in names:
    if name.lower() == "hardsigmoid":
      slope = _exact(alphas.pop(0)) if alphas else 0.2
      offset = _exact(betas.pop(0)) if betas else 0.5
      if not 0 < slope < math.inf:
        raise ValueError(
          f"activation_alpha of HardSigmoid must be in (0, inf), got {slope:g}"
        )
      if offset != 0.5:
        raise ValueError(
          f"activation_beta of HardSigmoid must be 0.5, got {offset}"
        )
      found.append(make_hard_sigmoid(slope))
    elif name.lower() in by_name:
      found.append(by_name[name.lower()])
    else:
      raise ValueError(f"activations must be one of {KNOWN}, got {name}")
  for key, left in (("activation_alpha", alphas), ("activation_beta", betas)):
    if left:
      raise ValueError(
        f"{key} must have at most one number for each HardSigmoid, "
        f"got {len(left)} more"
      )
  first, last = found[: len(standard)], found[-len(standard) :]
  if first != last:
    raise ValueError(
      "both directions must have the same activations, "
      f"got {', '.join(map(str, found))}"
    )
  return tuple(first)


def write_activations(cell: Cell, num_directions: int) -> dict[str, list]:
  """Return the attributes of a node for the activations of a cell.

  There are none if the activations are the standard ones.

  Raises:
    ValueError: an activation is neither in NAMES nor a hard sigmoid.
  """
  if not isinstance(cell, MadeCell):
    return {}
  names, slopes = [], []
  for activation in cell.arguments:
    if activation in NAMES:
      names.append(NAMES[activation])
    elif activation.function is HARD_SIGMOID.function:  # of any slope
      names.append("HardSigmoid")
      slopes.append(activation.parameters[0])
    else:
      raise ValueError(f"activations must be one of {KNOWN}, got {activation}")
  attributes: dict[str, list] = {"activations": names * num_directions}
  if slopes:
    attributes["activation_alpha"] = slopes * num_directions
    attributes["activation_beta"] = [0.5] * len(slopes) * num_directions
  return attributes


def _exact(x: float) -> float:
  """Return the number that most likely was rounded to x in float32.

  It is a decimal of at most 6 significant digits, or else a fraction with a
  denominator of at most 12, or else the shortest decimal that is x in float32.
  """
  single = np.float32(x)
  shortest = float(str(single))
  if not np.isfinite(single):
    return shortest
  for number in (
    float(f"{shortest:.6g}"),
    float(Fraction(shortest).limit_denominator(12)),
  ):
    if np.float32(number) == single:
      return number
  return shortest
