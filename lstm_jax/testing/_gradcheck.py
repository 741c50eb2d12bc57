"""Check a gradient derived by hand against autodiff and finite differences.

A function f of several tensors is reduced to a scalar by a random cotangent v
on every output, L(x) = Σ v·f(x). For each tensor, the gradient under test is
compared with that of autodiff, and both with central differences of fourth
order,

  L'(x; d) ≈ (L(x−2εd) − 8 L(x−εd) + 8 L(x+εd) − L(x+2εd)) / 12ε,

whose error is ε⁴ L⁽⁵⁾/30 from truncation and about u|L|/ε from rounding
(u = 2⁻⁵³): near 1e-13 |L| at the default ε = 1e-3. The directions d are the
unit vectors, one per coordinate, and for each tensor random unit vectors that
change all of its coordinates at once.

The relative error of two numbers a and b is

  |a − b| / max(|a|, |b|, rms, 10⁻³ RMS),

with rms the root mean square of the tensor's gradient by autodiff and RMS that
of all tensors together. A coordinate that happens to be near zero is thus
measured against the size of its neighbours, and a tensor whose gradient
vanishes against that of the others. So neither raises a false alarm (unless all
gradients vanish: rounding of the differences then does not pass), but an error
of 1 % in a term still shows as about 1e-2 where that term matters.

  >>> import jax, jax.numpy as jnp
  >>> report = gradcheck(jnp.sin, jnp.sin, jnp.ones(3), jax.random.key(0))
  >>> report.tensors[0].explicit_autodiff.relative
  0.0
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lstm_jax.cells.checks import as_number, check_count
from lstm_jax.cells.precision import as_array
from lstm_jax.testing.report import Error, Report, TensorReport

BATCH = 64  # most directions evaluated in one batch
LARGEST = 1 << 22  # most elements of a batch of directions, each as large as x


@np.errstate(invalid="ignore")  # NaN and infinity fail the check instead
def gradcheck(
  explicit: Callable[[Any], Any],
  autodiff: Callable[[Any], Any],
  x: Any,
  key: jax.Array,
  *,
  max_coordinates: int | None = None,
  num_directions: int = 4,
  epsilon: float = 1e-3,
) -> Report:
  """Compare the gradients of two implementations of one function.

  Args:
    explicit: x -> pytree of float arrays, with the gradient under test.
    autodiff: the same function, whose gradient JAX derives.
    x: a pytree of float arrays. The default tolerances of
      `Report.passes` need float64.
    key: a PRNG key for cotangents, coordinates and directions.
    max_coordinates: the largest number of coordinates of a tensor for which
      central differences are computed, drawn at random; None for all.
    num_directions: the number of random directions per tensor.
    epsilon: ε, the step of the differences.

  Returns:
    A report with one row per tensor, in the order of x's leaves; `print` shows
    it as a table.

  Raises:
    ValueError: x has no leaf, or a leaf that is empty or not float; the outputs
      of the two functions differ in shape or structure, or are empty or not
      float; max_coordinates or num_directions is not an integer ≥ 0; or epsilon
      is not a finite number above 0.
  """
  if max_coordinates is not None:
    check_count("max_coordinates", max_coordinates, 0)
  check_count("num_directions", num_directions, 0)
  epsilon = as_number("epsilon", epsilon)
  if not 0 < epsilon < math.inf:
    raise ValueError(f"epsilon must be a finite number above 0, got {epsilon}")
  x = jax.tree.map(lambda leaf: as_array("x must hold arrays", leaf), x)
  tensors = _slices(x)
  flat, unravel = ravel_pytree(x)
  # Jitted, f is traced once here. JAX's cache has no trace of a new `partial`,
  # so that the next check traces f anew: what it refers to may have changed.
  explicit, autodiff = (jax.jit(partial(f)) for f in (explicit, autodiff))
  found, outputs = (jax.eval_shape(f, x) for f in (explicit, autodiff))
  _check_outputs(found, outputs)
  # Random numbers are NumPy's: JAX would compile a program for every shape.
  draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  v = jax.tree.map(
    lambda y: jnp.asarray(draw.standard_normal(y.shape), y.dtype), outputs
  )

  def scalar(f, flat):
    outputs = f(unravel(flat))
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), outputs, v)
    return sum(jax.tree.leaves(products)), outputs

  def outputs_and_gradient(f):
    at = jax.value_and_grad(lambda flat: scalar(f, flat), has_aux=True)
    (_, outputs), gradient = jax.jit(at)(flat)
    return jax.device_get((jax.tree.leaves(outputs), gradient))

  explicit_outputs, ge = outputs_and_gradient(explicit)
  autodiff_outputs, ga = outputs_and_gradient(autodiff)
  differences = [
    np.abs(a - b).max() / max(1, np.abs(b).max())
    for a, b in zip(explicit_outputs, autodiff_outputs, strict=True)
  ]

  def slope(d):
    at = jax.vmap(lambda t: scalar(autodiff, flat + t * epsilon * d)[0])
    far_left, left, right, far_right = at(jnp.array([-2.0, -1.0, 1.0, 2.0]))
    return (far_left - 8 * left + 8 * right - far_right) / (12 * epsilon)

  picked = _pick(draw, tensors, max_coordinates)
  units = _units(draw, tensors, num_directions, flat)
  along_coordinates, along_units = _slopes(slope, np.concatenate(picked), units)

  ends = np.cumsum([len(indices) for indices in picked])
  centrals = np.split(along_coordinates, ends[:-1])
  units = units.reshape(len(tensors), num_directions, flat.size)
  along_units = along_units.reshape(len(tensors), num_directions)
  least = 1e-3 * _rms(ga)
  rows = []
  for (name, shape, part), chosen, central, d, along in zip(
    tensors, picked, centrals, units, along_units, strict=True
  ):
    floor = max(least, _rms(ga[part]))
    sampled, every = chosen - part.start, np.arange(ga[part].size)
    index = np.arange(num_directions)
    d = d[:, part]  # elsewhere it is 0, and 0 times a NaN would be NaN
    rows.append(
      TensorReport(
        name=name,
        size=len(every),
        explicit_autodiff=_error(ge[part], ga[part], floor, every, shape),
        explicit_central=_error(ge[chosen], central, floor, sampled, shape),
        autodiff_central=_error(ga[chosen], central, floor, sampled, shape),
        explicit_directional=_error(
          d @ ge[part], along, floor, index, index.shape
        ),
        autodiff_directional=_error(
          d @ ga[part], along, floor, index, index.shape
        ),
      )
    )
  dtypes = sorted({leaf.dtype.name for leaf in jax.tree.leaves(x)})
  return Report(float(np.max(differences)), tuple(rows), ", ".join(dtypes))


def _slices(x):
  """Return (name, shape, its slice of the flat vector) of every tensor."""
  tensors, start = [], 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(x):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
      raise ValueError(
        f"{name or 'x'} must be a float array with elements, got "
        f"{leaf.dtype} {leaf.shape}"
      )
    tensors.append((name, leaf.shape, slice(start, start + leaf.size)))
    start += leaf.size
  if not tensors:
    raise ValueError("x must be a tree of float arrays, got no array")
  return tensors


def _check_outputs(explicit, autodiff):
  """Raise ValueError unless both have elements, in equal trees of shapes."""
  found, expected = (
    [y.shape for y in jax.tree.leaves(tree)] for tree in (explicit, autodiff)
  )
  if found != expected:
    raise ValueError(
      f"explicit must return outputs of shapes {expected}, as autodiff does, "
      f"got {found}"
    )
  if len({*map(jax.tree.structure, (explicit, autodiff))}) > 1:
    raise ValueError(
      f"explicit must return {jax.tree.structure(autodiff)}, as autodiff does, "
      f"got {jax.tree.structure(explicit)}"
    )
  if not found or any(0 in shape for shape in found):
    raise ValueError(f"the outputs must have elements, got {found}")
  for y in jax.tree.leaves((explicit, autodiff)):
    if not jnp.issubdtype(y.dtype, jnp.floating):
      raise ValueError(f"the outputs must be floats, got {y.dtype} {y.shape}")


def _pick(draw, tensors, limit):
  """Return the flat indices of the coordinates to check, for each tensor."""
  picked = []
  for _, _, part in tensors:
    indices = np.arange(part.start, part.stop)
    if limit is not None and len(indices) > limit:
      indices = np.sort(draw.choice(indices, limit, replace=False))
    picked.append(indices)
  return picked


def _units(draw, tensors, count, flat):
  """Return random unit vectors of x, `count` within each tensor."""
  units = np.zeros((len(tensors) * count, flat.size), flat.dtype)
  for row in range(len(units)):
    part = tensors[row // count][2]  # the slice of `_slices`
    d = draw.standard_normal(part.stop - part.start)
    units[row, part] = d / np.linalg.norm(d)
  return units


def _slopes(slope, coordinates, units):
  """Return the slopes [K] along coordinates, and those [D] along units.

  Args:
    slope: maps a direction [N] to a number. It is compiled once, for a batch.
    coordinates: the indices [K] of coordinates.
    units: directions [D, N].
  """
  num, size = len(coordinates), units.shape[1]
  count = num + len(units)
  batch = max(1, min(BATCH, count, LARGEST // size))
  slopes, of_batch = np.zeros(count), jax.jit(jax.vmap(slope))
  for start in range(0, count, batch):
    directions = np.zeros((batch, size), units.dtype)  # 0 where not filled
    rows = np.arange(start, min(start + batch, count))
    ones, others = rows[rows < num], rows[rows >= num]
    directions[ones - start, coordinates[ones]] = 1
    directions[others - start] = units[others - num]
    slopes[rows] = of_batch(directions)[: len(rows)]
  return slopes[:num], slopes[num:]


def _rms(x):
  """Return the root mean square; NaN and infinity count as 0."""
  x = np.nan_to_num(x, posinf=0, neginf=0)
  scale = np.abs(x).max() or 1  # the squares of 1e200 would be infinite
  return float(scale * np.sqrt(np.mean((x / scale) ** 2)))


def _error(a, b, floor, indices, shape):
  """Return the largest error of a against b, [K] both.

  An error is divided by at least `floor`. `indices` are the places of the K
  values in a flattened array of this shape.
  """
  if not len(a):
    return Error(0, 0.0, 0.0, ())
  absolute = np.abs(a - b)
  scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)
  relative = np.where(absolute == 0, 0.0, absolute / scale)
  relative = np.nan_to_num(relative, nan=np.inf)
  worst = int(np.argmax(relative))
  where = tuple(map(int, np.unravel_index(int(indices[worst]), shape)))
  return Error(len(a), float(absolute.max()), float(relative[worst]), where)
