"""The memory that a compiled gradient of a sequence reserves and copies."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, lstm, unroll
from tests.contract import NAMES, TABLE

T, B, D, H = 64, 3, 24, 32
KEY = jax.random.key(0)

# Upper bounds for inputs that are (vectors, tokens), in T·B·H float32 numbers,
# besides arguments and results.
TEMPORARY = {
  "lstm": (8, 10),
  "gru": (9, 12),
  "rnn": (4, 4),
  "layernorm_lstm": (28, 28),
  "projected_lstm": (9, 11),
  "peephole_lstm": (11, 15),
  "coupled_lstm": (7, 8),
  "gru_reset_before": (10, 12),
  "relu_rnn": (4, 4),
}


def compiled_gradient(name, tokens, compute_dtype, **options):
  cell = TABLE[name].cell
  params = cell.init(KEY, D, H, jnp.float32)
  state = cell.initial_state(params, (B,))
  kind = ((T, B), jnp.int32) if tokens else ((T, B, D), jnp.float32)
  xs, dhs = jnp.zeros(*kind), jnp.zeros((T, *state.h.shape), jnp.float32)
  run = partial(unroll, cell, compute_dtype=compute_dtype, **options)

  def weighed(params, state, xs):
    return jnp.sum(run(params, state, xs)[1] * dhs)

  gradient = jax.grad(weighed, (0, 1) if tokens else (0, 1, 2))
  return jax.jit(gradient).lower(params, state, xs).compile()


CASES = pytest.mark.parametrize("tokens", [False, True], ids=["xs", "tokens"])


@NAMES
@CASES
@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16])
def test_no_loop_copies_a_sequence(name, tokens, compute_dtype):
  """A copy of [T, B, …] at every step would make the cost quadratic in T."""
  text = compiled_gradient(name, tokens, compute_dtype).as_text()
  bodies = set(re.findall(r"body=%([\w.\-]+)", text))
  loops = [
    computation
    for computation in re.split(r"\n(?=%|ENTRY)", text)
    if computation.split(" ")[0].lstrip("%") in bodies
    and f"[{T},{B}," in computation
  ]
  assert len(loops) == 2
  for loop in loops:
    assert not re.search(rf"= \w+\[{T},{B},\S* copy\(", loop)


@NAMES
@CASES
def test_temporaries_stay_within_their_bounds(name, tokens):
  memory = compiled_gradient(name, tokens, None).memory_analysis()
  reserved = memory.temp_size_in_bytes / (4 * T * B * H)
  assert reserved < TEMPORARY[name][tokens]


@NAMES
@pytest.mark.parametrize("residuals", ["gates", "recompute"])
def test_chunks_stay_within_their_bound(name, residuals):
  """The memory in `checkpointing`, the outputs, and the weights' gradients."""
  cell, chunk = TABLE[name].cell, 8
  params = cell.init(KEY, D, H, jnp.float32)
  state = cell.initial_state(params, (B,))
  weights, unit = (
    sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, state)
  )  # unit is S·B·H
  saved = unit * (T if residuals == "recompute" else T // chunk)
  of_chunk = B * H * TEMPORARY[name][0] * chunk
  bound = saved + of_chunk + T * state.h.size + 4 * weights
  compiled = compiled_gradient(
    name, False, None, adjoint=Explicit(residuals, chunk)
  )
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * bound


def test_each_adjoint_reserves_less_than_autodiff_by_its_factor():
  """At most 60 %, 35 % and 10 % of what autodiff of the scan reserves."""
  sizes = {"steps": 1024, "batch": 32, "hidden": 512}
  autodiff = temporaries(adjoint=Autodiff(), **sizes)
  assert temporaries(**sizes) < 0.6 * autodiff
  assert (
    temporaries(adjoint=Explicit(residuals="recompute"), **sizes)
    < 0.35 * autodiff
  )
  assert temporaries(adjoint=Explicit(chunk=32), **sizes) < 0.1 * autodiff


def temporaries(*, steps, batch, hidden, **options):
  """Return the bytes of temporaries of all gradients of an LSTM."""

  def weighed(params, state, xs, dhs):
    hs = unroll(lstm, params, state, xs, **options)[1]
    return jnp.sum(hs * dhs)

  params = jax.eval_shape(lambda k: lstm.init(k, hidden, hidden), KEY)
  state = jax.eval_shape(lambda p: lstm.initial_state(p, (batch,)), params)
  xs = jax.ShapeDtypeStruct((steps, batch, hidden), jnp.float32)
  gradient = jax.jit(jax.grad(weighed, (0, 1, 2)))
  compiled = gradient.lower(params, state, xs, xs).compile()
  return compiled.memory_analysis().temp_size_in_bytes
