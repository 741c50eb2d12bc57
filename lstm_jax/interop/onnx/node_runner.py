"""Compute a recurrent node of ONNX by `unroll`.

>>> import jax, jax.numpy as jnp
>>> from lstm_jax.cells import gru
>>> from lstm_jax.interop.onnx import run_node, to_onnx
>>> params = gru.init(jax.random.key(0), input_size=3, hidden_size=5)
>>> node, initializers = to_onnx(gru, params)
>>> xs = jnp.ones((7, 2, 3), jnp.float32)
>>> outputs = run_node(node, initializers, {"X": xs})
>>> outputs["Y"].shape, outputs["Y_h"].shape
((7, 1, 2, 5), (1, 2, 5))
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.precision import as_array
from lstm_jax.interop.onnx.attributes import (
  OUTPUTS,
  WEIGHTS,
  Attributes,
  read_attributes,
)
from lstm_jax.interop.onnx.nodes import (
  Layer,
  Node,
  Tensors,
  named_arrays,
  read_layer,
)
from lstm_jax.sequence import Directions, unroll, unroll_both


def run_node(
  node: Node, tensors: Tensors, inputs: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Return the outputs of a recurrent node.

  Unlike `from_onnx`, it takes lengths and initial states that are constants.
  The specification does not define Y_h and Y_c for rows of length 0. Here they
  are the initial state, as in `unroll`; onnxruntime returns 0. Without
  `jax_enable_x64`, float64 becomes float32.

  Args:
    node: as in `from_onnx`.
    tensors: the values of W, R, B and P, as in `from_onnx`, and of other inputs
      that are constants, by the names that the node gives them.
    inputs: the values of X [T, B, D], and of sequence_lens [B], initial_h and
      initial_c [directions, B, H] if the node has them, by the names that the
      node gives them, and no weights. A value here takes precedence over a
      constant of that name in tensors. With layout=1, X is [B, T, D], and a
      state [B, directions, H].

  Returns:
    Those of Y [T, directions, B, H], Y_h and Y_c [directions, B, H] that the
    node has, by the names that it gives them, in the dtype of X. With layout=1,
    Y is [B, T, directions, H], and a state [B, directions, H].

  Raises:
    ValueError: the node or its weights are refused by `from_onnx`; an input is
      missing, does not fit, or is none of those above; or a length is not in
      [0, T], unless lengths are traced.
    ModuleNotFoundError: the package onnx is not installed.
  """
  attributes = read_attributes(node)
  arrays = named_arrays(tensors)
  layer = read_layer(attributes, arrays)
  constants = {
    name: arrays[name]
    for key, name in attributes.names.items()
    if name in arrays and key not in WEIGHTS
  }
  _check_known(attributes, inputs)
  inputs = constants | dict(inputs)
  xs = _read_xs(attributes, layer, inputs)
  batch = xs.shape[1 if layer.time_major else 0]
  states = _initial_states(attributes, layer, inputs, batch)
  options: Any = {"time_major": layer.time_major}
  if "sequence_lens" in attributes.names:
    lengths = _value(attributes, inputs, "sequence_lens")
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
      raise ValueError(
        f"sequence_lens must be integers [{batch}], "
        f"got {lengths.dtype} {lengths.shape}"
      )
    steps = xs.shape[0 if layer.time_major else 1]
    given = inputs[attributes.names["sequence_lens"]]
    leaves = jax.tree.leaves(given)  # more than one in a list
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      outside = [n for n in np.asarray(given).tolist() if not 0 <= n <= steps]
      if outside:
        raise ValueError(
          f"sequence_lens must be in [0, {steps}], got {outside[0]}"
        )
    options["lengths"] = lengths
  last: Any
  if isinstance(layer.params, Directions):
    initial = Directions(*states)
    last, hs = unroll_both(layer.cell, layer.params, initial, xs, **options)
  else:
    (state,) = states
    options["reverse"] = layer.reverse
    state, hs = unroll(layer.cell, layer.params, state, xs, **options)
    last = (state,)
  ys = hs.reshape(*hs.shape[:2], len(last), last[0].h.shape[-1])
  results = {"Y": jnp.swapaxes(ys, 1, 2) if layer.time_major else ys}
  for field in last[0]._fields:
    values = [getattr(state, field) for state in last]
    stacked = jnp.stack(values, 0 if layer.time_major else 1)
    results[f"Y_{field}"] = stacked.astype(xs.dtype)  # our c may be float32
  named = zip(OUTPUTS[attributes.op_type], node.output, strict=False)
  return {name: results[key] for key, name in named if name}


def _check_known(attributes: Attributes, inputs: Mapping[str, Any]) -> None:
  """Raise ValueError unless the node has X and reads every name of inputs.

  The names of its weights are refused too.
  """
  if "X" not in attributes.names:
    raise ValueError("the node must have a name for its input X, got none")
  names = [n for key, n in attributes.names.items() if key not in WEIGHTS]
  unknown = [name for name in inputs if name not in names]
  if unknown:
    raise ValueError(
      f"inputs must be among {', '.join(names)}, got {unknown[0]!r}"
    )


def _read_xs(
  attributes: Attributes, layer: Layer, inputs: Mapping[str, Any]
) -> jax.Array:
  """Return X, after a check of its shape and dtype."""
  xs = _value(attributes, inputs, "X")
  params = layer.params
  one = params.forward if isinstance(params, Directions) else params
  size = one.w_x.shape[0]
  if xs.ndim != 3 or xs.shape[-1] != size or xs.dtype != one.w_x.dtype:
    axes = "T, B" if layer.time_major else "B, T"
    raise ValueError(
      f"X must be {one.w_x.dtype} [{axes}, {size}], got {xs.dtype} {xs.shape}"
    )
  return xs


def _initial_states(
  attributes: Attributes, layer: Layer, inputs: Mapping[str, Any], batch: int
) -> list[Any]:
  """Return the initial state of each direction, zero where none is given."""
  params = layer.params
  directions = params if isinstance(params, Directions) else (params,)
  states = [layer.cell.initial_state(p, (batch,)) for p in directions]
  dtype = directions[0].w_x.dtype
  for field, zero in states[0]._asdict().items():
    key = f"initial_{field}"
    if key not in attributes.names:
      continue
    value = _value(attributes, inputs, key)
    axes = len(states), batch
    shape = *(axes if layer.time_major else axes[::-1]), zero.shape[-1]
    if value.shape != shape or value.dtype != dtype:
      raise ValueError(
        f"{key} must be {dtype} {list(shape)}, got {value.dtype} {value.shape}"
      )
    parts = jnp.moveaxis(value, 0 if layer.time_major else 1, 0)
    states = [
      state._replace(**{field: part.astype(zero.dtype)})
      for state, part in zip(states, parts, strict=True)
    ]
  return states


def _value(
  attributes: Attributes, inputs: Mapping[str, Any], key: str
) -> jax.Array:
  """Return the value of an input of the node, such as X.

  Raises:
    ValueError: inputs do not have it, or it is no array.
  """
  name = attributes.names[key]
  if name not in inputs:
    raise ValueError(
      f"{key} ({name!r}) is missing, got {', '.join(sorted(inputs)) or 'none'}"
    )
  return as_array(f"{key} ({name!r}) must be an array of numbers", inputs[name])
