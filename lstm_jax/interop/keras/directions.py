"""The arrays of a Keras layer by name, for each of its directions."""

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_jax.interop.tensors import Array, as_array

NAMES = "kernel", "recurrent_kernel", "bias"
SIDES = "forward ", "backward "  # of a Bidirectional; also prefixes in errors


def by_direction(weights: Any) -> dict[str, dict[str, Array]]:
  """Return the arrays of a layer by direction, and in each by name.

  Args:
    weights: what `from_keras` takes.

  Returns:
    {"": {name: array}}, or for a Bidirectional {side: {name: array}} with both
    SIDES.

  Raises:
    ValueError: they are not the arrays of one layer.
  """
  if isinstance(weights, Mapping):
    return _by_name(weights)
  if not isinstance(weights, Sequence) or hasattr(weights, "_fields"):
    raise ValueError(
      "weights must be what a layer's get_weights() returns, or a mapping from "
      f"names to arrays, got {type(weights).__name__}"
    )
  if len(weights) not in (2, 3, 4, 6):
    raise ValueError(
      "weights must be the 2 or 3 arrays of a layer, or the 4 or 6 of a "
      f"Bidirectional, got {len(weights)}"
    )
  sides = SIDES if len(weights) > 3 else ("",)
  names = NAMES[: len(weights) // len(sides)]
  arrays = iter(weights)
  return {
    side: {name: as_array(f"{side}{name}", next(arrays)) for name in names}
    for side in sides
  }


def _by_name(weights: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
  """Return the arrays of each direction, recognized by the variables' paths.

  The part of a path before the cell is the layer, such as forward_lstm in
  "bi/forward_lstm/lstm_cell/kernel". In a Bidirectional, the name of the
  forward layer always begins with "forward_"; the backward layer may be one
  that the user made, with any name that does not begin so.
  """
  for path in weights:
    if not isinstance(path, str):
      raise ValueError(f"a path must be a str, got {path!r}")
  layers = {path: (path.split("/")[-3:-1] or [""])[0] for path in weights}
  distinct = set(layers.values())
  forward = [layer for layer in distinct if layer.startswith("forward_")]
  both = len(distinct) == 2 and len(forward) == 1
  sides = SIDES if both else ("",)
  found: dict[str, dict[str, Array]] = {side: {} for side in sides}
  for path, value in weights.items():
    name = path.rpartition("/")[2]
    if name not in NAMES:
      raise ValueError(
        f"a path must end in {', '.join(NAMES)}, as those of an LSTM, GRU or "
        f"SimpleRNN do, got {path!r}"
      )
    side = sides[0] if layers[path] in forward else sides[-1]
    if name in found[side]:
      raise ValueError(f"weights must be of one layer, got two with {name}")
    found[side][name] = as_array(path, value)
  if len(distinct) > len(sides):
    raise ValueError(f"weights must be of one layer, got {sorted(distinct)}")
  return found
