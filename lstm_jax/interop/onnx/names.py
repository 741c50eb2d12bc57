"""The names of the tensors that a recurrent node of ONNX reads and writes."""

from collections.abc import Mapping, Sequence


def checked_names(
  kind: str,
  op_type: str,
  given: Mapping[str, str] | None,
  known: Sequence[str],
  default: Sequence[str],
) -> dict[str, str]:
  """Return the names of a node's inputs or outputs, after a check.

  Args:
    kind: "inputs" or "outputs".
    op_type: LSTM, GRU or RNN.
    given: {input or output: name}; None for the keys in `default`, each with
      itself as its name.
    known: the operator's inputs or outputs.
    default: those that a node has if given is None.

  Raises:
    ValueError: given is no mapping, a key of it is not known, a name is empty
      or no str, or X or all outputs are missing.
  """
  if given is None:
    given = {key: key for key in default}
  if not isinstance(given, Mapping):
    found = type(given).__name__
    raise ValueError(f"{kind} of {op_type} must be a mapping, got {found}")
  names = dict(given)
  unknown = [key for key in names if key not in known]
  if unknown:
    raise ValueError(
      f"{kind} of {op_type} must be among {', '.join(known)}, "
      f"got {', '.join(map(str, unknown))}"
    )
  if not names or (kind == "inputs" and "X" not in names):
    needed = "X" if kind == "inputs" else f"one of {', '.join(known)}"
    got = ", ".join(names) or "none"
    raise ValueError(f"{kind} of {op_type} must have {needed}, got {got}")
  for key, name in names.items():
    if not name or not isinstance(name, str):
      raise ValueError(
        f"{kind} of {op_type} must have a name for {key}, got {name!r}"
      )
  return names


def check_distinct(
  inputs: Mapping[str, str],
  outputs: Mapping[str, str],
  weights: Mapping[str, str],
) -> None:
  """Raise ValueError if a name occurs twice, except twice within inputs.

  The names of the weights differ from each other: a prefix and their keys.
  """
  taken = {name: key for key, name in weights.items()}
  for key, name in inputs.items():
    _check_free(key, name, taken)
  taken |= {name: key for key, name in inputs.items()}
  for key, name in outputs.items():
    _check_free(key, name, taken)
    taken[name] = key


def _check_free(key: str, name: str, taken: Mapping[str, str]) -> None:
  if name in taken:
    raise ValueError(
      f"{key} must not have the name of {taken[name]}, got {name!r}"
    )


def positional(names: Mapping[str, str], keys: Sequence[str]) -> list[str]:
  """Return the names in the order of keys, up to the last key that has one.

  ONNX identifies inputs and outputs by their position: one that is missing
  before the last has the name "".
  """
  last = max(keys.index(key) for key in names)
  return [names.get(key, "") for key in keys[: last + 1]]
