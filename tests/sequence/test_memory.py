"""The memory that a compiled gradient of a sequence reserves and copies."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import Autodiff, Explicit, gru, lstm, unroll
from tests.contract import NAMES, TABLE, TAKE_TOKENS
from tests.draws import shapes

T, B, D, H = 64, 3, 24, 32
KEY = jax.random.key(0)

# Upper bounds of temporary memory, without arguments and results, for inputs
# that are (vectors, tokens): how many times T·B·H float32 numbers. None for a
# cell that takes no tokens.
TEMPORARY = {
  "lstm": (8, 10),
  "gru": (9, 12),
  "rnn": (4, 4),
  "layernorm_lstm": (28, 28),
  "projected_lstm": (9, 11),
  "peephole_lstm": (11, 15),
  "coupled_lstm": (7, 8),
  "min_gru": (9, 9),
  "min_lstm": (10, 10),
  "lru": (8, 8),
  "gru_reset_before": (10, 12),
  "relu_rnn": (4, 4),
  "mogrifier_lstm": (25, None),
  "slstm": (10, 14),
}
if jax.__version_info__ >= (0, 11):  # its XLA reserves more
  TEMPORARY["min_lstm"] = 10, 11


def shapes_of(cell):
  """Return the shapes of a cell's weights and state."""
  sizes = {"batch": (B,), "size": D, "hidden": H}
  params, state, _ = shapes(cell, **sizes, dtype=jnp.float32)
  return params, state


def compiled_gradient(name, tokens, compute_dtype, **options):
  cell = TABLE[name].cell
  params, state = shapes_of(cell)
  kind = ((T, B), jnp.int32) if tokens else ((T, B, D), jnp.float32)
  xs = jax.ShapeDtypeStruct(*kind)
  dhs = jnp.zeros((T, *state.h.shape), jnp.float32)
  run = partial(unroll, cell, compute_dtype=compute_dtype, **options)

  def weighed(params, state, xs):
    return jnp.sum(run(params, state, xs)[1] * dhs)

  gradient = jax.grad(weighed, (0, 1) if tokens else (0, 1, 2))
  return jax.jit(gradient).lower(params, state, xs).compile()


@cache  # two tests ask about one program
def text_and_reserved(name, tokens, compute_dtype):
  """Return a gradient's program, and how many bytes it reserves."""
  compiled = compiled_gradient(name, tokens, compute_dtype)
  return compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


def test_a_linear_backward_makes_no_shifted_copy_of_its_cotangents():
  """The loop itself returns the cotangent of the state after each step."""
  cell, size = TABLE["lru"].cell, 4 * T * B * H
  params = jax.eval_shape(lambda: cell.init(KEY, H, H))
  xs = jax.ShapeDtypeStruct((T, B, H), jnp.float32)

  def weighed(params, xs, dhs):
    return jnp.sum(unroll(cell, params, None, xs)[1] * dhs)

  lowered = jax.jit(jax.grad(weighed, (0, 1))).lower(params, xs, xs)
  reserved = lowered.compile().memory_analysis().temp_size_in_bytes
  assert reserved < 6.5 * size  # with the copy, 7


CASES = pytest.mark.parametrize("tokens", [False, True], ids=["xs", "tokens"])


def skip_without_tokens(name, tokens):
  if tokens and TEMPORARY[name][1] is None:
    assert name not in TAKE_TOKENS
    pytest.skip("the cell takes no tokens")


@pytest.mark.everyday(2)
@NAMES
@CASES
@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16])
def test_no_loop_copies_a_sequence(name, tokens, compute_dtype):
  """A copy of [T, B, …] at every step would make the cost quadratic in T."""
  skip_without_tokens(name, tokens)
  text, _ = text_and_reserved(name, tokens, compute_dtype)
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
  skip_without_tokens(name, tokens)
  _, reserved = text_and_reserved(name, tokens, None)
  assert reserved / (4 * T * B * H) < TEMPORARY[name][tokens]


def saved(**options):
  """Return how many floats the backward of an LSTM gets from the forward."""
  params = lstm.init(KEY, D, H)
  xs = jnp.zeros((T, B, D), jnp.float32)

  def leaves(params):
    pullback = jax.vjp(lambda p: unroll(lstm, p, None, xs, **options), params)
    return jax.tree.leaves(pullback[1])

  arrays = jax.eval_shape(leaves, params)
  return sum(x.size for x in arrays if x.dtype == jnp.float32)


@pytest.mark.parametrize("chunk", [8, 10])
@pytest.mark.parametrize("residuals", ["gates", "recompute"])
def test_chunks_save_the_states_of_the_table(residuals, chunk):
  """What the table of `checkpointing` says, in the column "saved"."""
  weights = sum(x.size for x in jax.tree.leaves(lstm.init(KEY, D, H)))
  starts = -(-T // chunk)
  states = starts if residuals == "gates" else starts + T
  expected = weights + T * B * D + 2 * states * B * H  # 2: h and c
  assert saved(adjoint=Explicit(residuals, chunk)) == expected


@pytest.mark.exhaustive
def test_resets_save_the_h_that_enters_a_step_and_a_mask_does_not():
  yes = jnp.ones((T, B), bool)
  assert saved(reset=yes) - saved() == T * B * H
  # If the mask alone saved this h, the reset would add nothing to it.
  assert saved(reset=yes, mask=yes) - saved(mask=yes) == T * B * H
  # Both need this h, and it is saved once.
  both = {"reset": yes, "state_dropout": jnp.ones(H, bool)}
  assert saved(**both) - saved() == T * B * H


@pytest.mark.everyday(1)
@NAMES
@pytest.mark.parametrize("residuals", ["gates", "recompute"])
def test_chunks_stay_within_their_bound(name, residuals):
  """The bound, in floats, is the sum of what a gradient must hold.

  These are the states in the table of `checkpointing` (of "recompute" only
  those after each step), the chunk, by its bound in TEMPORARY, the outputs, and
  the weights' gradients, which XLA holds twice: measured, up to 2.01 times.
  """
  cell, chunk = TABLE[name].cell, 8
  params, state = shapes_of(cell)
  weights, unit = (
    sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, state)
  )  # unit: the elements of the state before one time step
  saved_states = unit * (T if residuals == "recompute" else T // chunk)
  of_chunk = B * H * TEMPORARY[name][0] * chunk
  bound = saved_states + of_chunk + 2.1 * weights
  if residuals == "gates":  # else the outputs are among the states
    bound += T * state.h.size
  compiled = compiled_gradient(
    name, False, None, adjoint=Explicit(residuals, chunk)
  )
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * bound


def test_explicit_adjoints_reserve_less_than_autodiff_by_their_factors():
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


@pytest.mark.exhaustive
def test_a_shorter_last_chunk_copies_no_inputs():
  """One time step more than whole chunks, with inputs wider than the state."""
  steps, batch, width = 128, 8, 512
  params = jax.eval_shape(lambda k: gru.init(k, width, 4), KEY)

  def reserved(steps):
    def loss(params, xs):
      return unroll(gru, params, None, xs, adjoint=Explicit(chunk=16))[1].sum()

    xs = jax.ShapeDtypeStruct((steps, batch, width), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(params, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  inputs = 4 * steps * batch * width
  assert reserved(steps + 1) - reserved(steps) < 0.1 * inputs


def test_recompute_saves_the_outputs_once():
  """Of an LSTM's states h and c, only c is reserved beside the outputs h."""
  steps, batch, hidden = 1024, 32, 64
  params = jax.eval_shape(lambda k: lstm.init(k, hidden, hidden), KEY)
  xs = jax.ShapeDtypeStruct((steps, batch, hidden), jnp.float32)

  def both(params, xs, dhs):
    adjoint = Explicit(residuals="recompute")
    run = partial(unroll, lstm, adjoint=adjoint)
    (last, hs), pullback = jax.vjp(lambda p: run(p, None, xs), params)
    return hs, pullback((jax.tree.map(jnp.zeros_like, last), dhs))

  compiled = jax.jit(both).lower(params, xs, xs).compile()
  of_c = 4 * steps * batch * hidden  # bytes; h as well would need twice as many
  assert compiled.memory_analysis().temp_size_in_bytes < 1.7 * of_c


@pytest.mark.exhaustive
def test_a_shorter_last_chunk_costs_one_more_array_of_outputs():
  """To join its outputs to the others; its inputs are not copied."""
  batch, hidden = 32, 64
  params = jax.eval_shape(lambda k: lstm.init(k, hidden, hidden), KEY)

  def reserved(steps, adjoint):
    def both(params, xs, dhs):
      run = partial(unroll, lstm, adjoint=adjoint)
      (last, hs), pullback = jax.vjp(lambda p: run(p, None, xs), params)
      return hs, pullback((jax.tree.map(jnp.zeros_like, last), dhs))

    xs = jax.ShapeDtypeStruct((steps, batch, hidden), jnp.float32)
    compiled = jax.jit(both).lower(params, xs, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  outputs = 4 * 1024 * batch * hidden
  # On a CPU all have chunks of 32 steps, here 1,024 rows: it is the default of
  # "recompute", and Explicit() takes it for large sequences. No larger C
  # divides the prime 1,031.
  for adjoint in (Explicit("recompute"), Explicit(chunk=32), Explicit()):
    more = reserved(1031, adjoint) - reserved(1024, adjoint)
    assert more < 1.1 * outputs, adjoint
