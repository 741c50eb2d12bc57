"""Outputs without a gradient: from jax 0.12 on, x W_x comes before the loop."""

import re
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Explicit, Step, lstm, unroll
from lstm_jax.sequence import checkpointing, scan
from tests.contract import each_cell
from tests.draws import B, D, H, T, arguments, worst
from tests.sequence.options import OPTIONS

PROJECTS_FIRST = jax.__version_info__ >= (0, 12)  # as in `projects_first`
ADJOINTS = [Explicit(), Explicit(chunk=2), Explicit("recompute", 2)]


@pytest.fixture
def projecting(monkeypatch, traced_anew):
  """Compute the input products first, whatever the sizes and the version."""
  calls = []

  def always(*_):
    calls.append(True)
    return True

  for module in scan, checkpointing:
    monkeypatch.setattr(module, "projects_first", always)
  yield
  assert calls


def lowered(steps, batch, size, hidden, **options):
  """Return the lowered program of an LSTM's outputs, without a gradient."""
  shapes = jax.eval_shape(
    lambda k: lstm.init(k, size, hidden, jnp.float32), jax.random.key(0)
  )
  xs = jax.ShapeDtypeStruct((steps, batch, size), jnp.float32)

  def outputs(params, xs):
    return unroll(lstm, params, None, xs, **options)[1]

  return jax.jit(outputs).lower(shapes, xs)


@pytest.mark.everyday(5)
@each_cell(
  ("options", "adjoint"),
  [*product(OPTIONS, ADJOINTS)],
  others=[("masked", Explicit())],
)
@pytest.mark.usefixtures("projecting")
def test_outputs_are_those_of_the_loop_over_steps(cell, options, adjoint, key):
  inputs = arguments(cell, key)
  run = partial(unroll, cell, *inputs, **OPTIONS[options])
  assert worst(run(adjoint=adjoint), run(adjoint=Step())) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, T])
@pytest.mark.usefixtures("projecting")
def test_outputs_of_tokens_are_those_of_the_loop_over_steps(steps, key):
  params, state, _ = arguments(lstm, key)
  tokens = jax.random.randint(key, (steps, B), 0, D)
  run = partial(unroll, lstm, params, state, tokens)
  assert worst(run(), run(adjoint=Step())) < 1e-12


def test_the_input_product_is_outside_of_the_loop_from_jax_0_12_on():
  text = lowered(T, B, D, H).as_text()
  products = re.findall(r"dot_general.*: \(tensor<(\S+)xf32>, (\S+)\)", text)
  rows = {x for x, w in products if w == f"tensor<{D}x{4 * H}xf32>"}
  steps = f"{T}x" if PROJECTS_FIRST else ""
  assert rows == {f"{steps}{B}x{D}"}


@pytest.mark.parametrize("batch", [1, 32])
def test_outputs_of_a_long_sequence_need_little_memory(batch):
  steps, hidden = 65_536 // batch, 16
  program = lowered(steps, batch, hidden, hidden).compile()
  reserved = program.memory_analysis().temp_size_in_bytes
  products = 4 * steps * batch * 4 * hidden  # bytes of x W_x, four gates
  assert reserved < products / 2  # one copy of hs is a quarter


@pytest.mark.parametrize("residuals", ["gates", "recompute"])
@pytest.mark.usefixtures("projecting")
def test_outputs_by_chunks_need_less_memory_than_the_products(residuals):
  steps, batch, hidden = 64, 8, 16
  adjoint = Explicit(residuals, chunk=8)
  program = lowered(steps, batch, hidden, hidden, adjoint=adjoint).compile()
  reserved = program.memory_analysis().temp_size_in_bytes
  products = 4 * steps * batch * 4 * hidden  # bytes of x W_x, four gates
  assert reserved < products / 2
