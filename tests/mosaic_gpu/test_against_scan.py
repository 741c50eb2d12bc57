"""The kernels, interpreted, compute what the scan does: values and gradients.

Each case is a shape, a dtype and features of `unroll`. Together they have every
feature that the kernels take, and each cell with masks, lengths, resets,
reversal, every dtype, and blocks of one and of several warpgroups, clusters,
few and many sequences.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence.implementation import COUNTS
from tests.interpreting import NEEDS_KERNELS
from tests.mosaic_gpu.layers import (
  BFLOAT16,
  CELLS,
  FLOAT32,
  B,
  D,
  H,
  T,
  agree,
  draw,
  errors,
  kernel_results,
  results,
)

pytestmark = [NEEDS_KERNELS, pytest.mark.usefixtures("threads")]

ONE = (1, 1)  # (warpgroups, thread blocks of a cluster)


class Case(NamedTuple):
  cell: str
  features: str = ""
  hidden: int = H
  batch: tuple[int, ...] = (B,)
  rows: int = 8  # sequences of a thread block
  parts: tuple[int, int] = ONE
  # "float32", "bfloat16", or "products": float32 with products in bfloat16
  dtype: str = "float32"
  steps: int = T


CASES = [
  Case("lstm"),
  Case("lstm", "mask reset", 64, (17,), 16),
  Case("lstm", "reverse reset", 64, ()),
  Case("lstm", "reverse lengths", 50, (2, 3)),
  Case("lstm", "mask tokens", 100, parts=(1, 2)),
  Case("lstm", "mask reset reverse", 128, (17,), 16, (2, 1), "products"),
  Case("lstm", "lengths", 192, (17,), 16, (1, 3), "products"),
  Case("lstm", "mask batch_major", dtype="bfloat16"),
  Case("lstm", steps=1),
  Case("gru", "mask reset reverse"),
  Case("gru", "tokens", 128, (17,), parts=(2, 1)),
  Case("gru", "lengths", 64, (17,), 32),
  Case("gru", "mask", 130, (17,), 32, (1, 3), "products"),
  Case("gru", "reset batch_major", batch=(2, 3), dtype="bfloat16"),
  Case("gru", "reverse no_state", 256, parts=(1, 4)),
  Case("gru", dtype="products", steps=1),
  Case("rnn", "mask reverse"),
  Case("rnn", "reset", 130, (17,), 32, (3, 1)),
  Case("rnn", "tokens reverse", 256, (17,), 32, (4, 1), "products"),
  Case("rnn", "lengths reset reverse", 320, (17,), 32, (1, 5), "products"),
  Case("rnn", "no_state", batch=(), dtype="bfloat16"),
  Case("rnn", "mask batch_major reset", 64, (2, 3)),
  Case("rnn", "", 512, parts=(1, 8)),
]


def name_of(case):
  cell, features, hidden, _, rows, _, dtype, steps = case
  sizes = f"H{hidden}", f"N{rows}", f"T{steps}"
  return "-".join([cell, dtype, *sizes, *features.split()])


def arguments_of(case):
  """Return the cell, (params, state, xs), and the options of `unroll`."""
  cell, features = CELLS[case.cell], case.features.split()
  dtype = jnp.bfloat16 if case.dtype == "bfloat16" else jnp.float32
  params, state, xs = draw(
    cell,
    steps=case.steps,
    batch=case.batch,
    hidden=case.hidden,
    dtype=dtype,
  )
  rng, options = np.random.default_rng(2), {}
  step_shape = case.steps, *case.batch
  if case.dtype == "products":
    options["compute_dtype"] = jnp.bfloat16
  if "tokens" in features:
    xs = jnp.asarray(rng.integers(D, size=step_shape), jnp.int32)
  if "mask" in features:
    mask = jnp.asarray(rng.random(step_shape) < 0.6)
    options["mask"] = mask
    if "tokens" not in features:
      xs = jnp.where(mask[..., None], xs, jnp.asarray(np.nan, dtype))
  if "lengths" in features:
    lengths = rng.integers(case.steps + 1, size=case.batch)
    options["lengths"] = jnp.asarray(lengths, jnp.int32)
  if "reset" in features:
    options["reset"] = jnp.asarray(rng.random(step_shape) < 0.4)
  if "batch_major" in features:
    swapped = {"mask", "reset"} & set(options)
    options |= {name: jnp.swapaxes(options[name], 0, 1) for name in swapped}
    xs = jnp.swapaxes(xs, 0, 1)
    options["time_major"] = False
  if "reverse" in features:
    options["reverse"] = True
  state = None if "no_state" in features else state
  return cell, (params, state, xs), options


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_values_and_gradients_are_those_of_the_scan(case, monkeypatch):
  cell, arguments, options = arguments_of(case)
  if case.rows > 8:
    # Without multiprocessors, blocks never all run at once: each then has the
    # most sequences that fit, whatever B is.
    monkeypatch.setattr(limits, "MULTIPROCESSORS", 0)
  itemsize = 4 if case.dtype == "float32" else 2
  count = int(np.prod(case.batch))
  plan = limits.divide(COUNTS[cell], case.hidden, count, itemsize)
  assert (plan.rows, plan.warpgroups, plan.cluster) == (case.rows, *case.parts)
  found = kernel_results(cell, arguments, **options)
  expected = results(None, cell, arguments, **options)
  tolerance = FLOAT32 if case.dtype == "float32" else BFLOAT16
  assert agree(found, expected, tolerance), errors(found, expected)
  assert all(np.linalg.norm(x) > 0 for x in jax.tree.leaves(expected))


def test_the_cases_have_what_the_docstring_says():
  features = {f for case in CASES for f in case.features.split()}
  assert features == {
    *("mask", "lengths", "reset", "reverse", "tokens"),
    *("batch_major", "no_state"),
  }
  for name, cell in CELLS.items():
    cases = [case for case in CASES if case.cell == name]
    assert {"mask", "lengths", "reset", "reverse"} <= {
      feature for case in cases for feature in case.features.split()
    }
    assert {c.dtype for c in cases} == {"float32", "bfloat16", "products"}
    rows = {n for n in (8, 16, 32) if n <= COUNTS[cell].max_rows}
    # 8 and 32 for rnn and gru, which leave out 16; 8 and 16 for lstm.
    assert {c.rows for c in cases} == {min(rows), max(rows)}
    kinds = {(c.parts[0] > 1, c.parts[1] > 1) for c in cases}
    assert kinds == {(False, False), (True, False), (False, True)}
