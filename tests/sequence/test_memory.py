"""What the compiled gradient of a sequence reserves, and what it copies."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import unroll
from tests.contract import TABLE

T, B, D, H = 64, 3, 24, 32

# In T·B·H numbers of float32, beside arguments and results: vectors, tokens.
TEMPORARY = {
  "lstm": (9, 10),
  "gru": (10, 12),
  "rnn": (4, 4),
  "layernorm_lstm": (28, 28),
  "projected_lstm": (10, 11),
  "peephole_lstm": (11, 15),
  "coupled_lstm": (8, 8),
}


def compiled_gradient(name, tokens, compute_dtype, **options):
  cell = TABLE[name].cell
  params = cell.init(jax.random.key(0), D, H, jnp.float32)
  state = cell.initial_state(params, (B,))
  kind = ((T, B), jnp.int32) if tokens else ((T, B, D), jnp.float32)
  xs, dhs = jnp.zeros(*kind), jnp.zeros((T, *state.h.shape), jnp.float32)
  run = partial(unroll, cell, compute_dtype=compute_dtype, **options)

  def weighed(params, state, xs):
    return jnp.sum(run(params, state, xs)[1] * dhs)

  gradient = jax.grad(weighed, (0, 1) if tokens else (0, 1, 2))
  return jax.jit(gradient).lower(params, state, xs).compile()


CASES = pytest.mark.parametrize("tokens", [False, True], ids=["xs", "tokens"])
CELLS = pytest.mark.parametrize("name", TABLE)


@CELLS
@CASES
@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16])
def test_no_loop_copies_a_sequence(name, tokens, compute_dtype):
  """One copy of [T, B, …] a step would make the cost quadratic in T."""
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


@CELLS
@CASES
def test_temporaries_stay_within_their_bill(name, tokens):
  memory = compiled_gradient(name, tokens, None).memory_analysis()
  reserved = memory.temp_size_in_bytes / (4 * T * B * H)
  assert reserved < TEMPORARY[name][tokens]


@CELLS
def test_chunks_keep_one_state_in_so_many_steps(name):
  """B·H (S·T/C + R·C), the inputs and outputs, and the weights' gradients."""
  chunk, states = 8, 2 if "lstm" in name else 1
  rest = TEMPORARY[name][0]
  params = TABLE[name].cell.init(jax.random.key(0), D, H, jnp.float32)
  weights = sum(leaf.size for leaf in jax.tree.leaves(params))
  bill = B * H * (states * T // chunk + rest * chunk + T) + 4 * weights
  memory = compiled_gradient(name, False, None, chunk=chunk).memory_analysis()
  assert memory.temp_size_in_bytes < 4 * bill
