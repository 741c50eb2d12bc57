"""Large batches on a CPU run by chunks, with the same values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, gru, lstm, min_gru, unroll
from lstm_jax.cells.platform import clear_programs, traced_for
from lstm_jax.sequence import checkpointing, chunk_size, in_place
from tests.contract import TABLE, each_cell
from tests.draws import B, D, H, T, arguments, weighed, worst
from tests.gradients import value_and_gradient
from tests.sequence.options import OPTIONS

pytestmark = pytest.mark.usefixtures("traced_anew")


@pytest.fixture
def large(monkeypatch):
  """Take T·B rows for many, any arrays for large, and two steps for a chunk."""
  monkeypatch.setattr(chunk_size, "MANY_ROWS", T * B - 1)
  monkeypatch.setattr(chunk_size, "MANY_BYTES", 0)
  monkeypatch.setattr(chunk_size, "MANY_BYTES_OF_LINEAR", 0)
  monkeypatch.setattr(chunk_size, "FULL_SPEED_ROWS", 2 * B)


@pytest.fixture
def looped(monkeypatch):
  """Loop over the time steps of a chunk, however few they are."""
  monkeypatch.setattr(in_place, "MOST_UNROLLED", 0)


EACH = each_cell("options", OPTIONS, others=["masked"])


def gradient(cell, **options):
  key = jax.random.key(0)
  f = weighed(partial(unroll, cell, **options), key)
  return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments(cell, key))


def expected_gradient(cell, options):
  """Return the value and gradient by autodiff, which has no chunks."""
  args = arguments(cell, jax.random.key(0))
  return value_and_gradient(cell, args, adjoint=Autodiff(), **OPTIONS[options])


def loops(cell=lstm, batch=B):
  """Return the number of loops in the gradient."""
  params = cell.init(jax.random.key(0), D, H)

  def loss(params, xs):
    return unroll(cell, params, None, xs)[1].sum()

  lowered = jax.jit(jax.grad(loss)).lower(params, jnp.ones((T, batch, D)))
  return lowered.as_text().count("stablehlo.while")


@pytest.mark.everyday(1)
@EACH
@pytest.mark.usefixtures("large")
def test_chunks_have_the_gradient_of_autodiff(cell, options):
  expected = expected_gradient(cell, options)
  found = gradient(cell, **OPTIONS[options])
  assert worst(tuple(found), tuple(expected)) < 1e-12


@pytest.mark.usefixtures("large")
# With an `spmd_axis_name`, JAX maps `unroll` itself: it adds no batch axis.
@pytest.mark.parametrize("name", [None, "data"])
def test_grad_of_vmap_is_that_of_autodiff(name, key):
  params, state, xs = arguments(lstm, key)

  def gradient(adjoint):
    def hs(params, state, xs):
      run = partial(unroll, lstm, params, state, adjoint=adjoint)
      of_scaled = lambda scale: run(scale * xs)[1]  # noqa: E731
      scales = jnp.array([0.5, 2.0])
      return jax.vmap(of_scaled, spmd_axis_name=name)(scales)

    return jax.jit(jax.grad(weighed(hs, key), (0, 1, 2)))(params, state, xs)

  assert worst(gradient(Explicit()), gradient(Autodiff())) < 1e-12


@pytest.mark.everyday(1)
@EACH
@pytest.mark.usefixtures("large", "looped")
def test_looped_chunks_have_the_gradient_of_autodiff(cell, options):
  expected = expected_gradient(cell, options)
  found = gradient(cell, **OPTIONS[options])
  assert worst(tuple(found), tuple(expected)) < 1e-12


@pytest.mark.exhaustive
@pytest.mark.usefixtures("large")
def test_chunks_of_tokens_have_the_gradient_of_autodiff(key):
  params, state, _ = arguments(lstm, key)
  tokens = jax.random.randint(key, (T, B), 0, D)

  def gradient(adjoint):
    def f(params, state):
      options = {} if adjoint is None else {"adjoint": adjoint}
      return unroll(lstm, params, state, tokens, **options)

    return jax.jit(jax.grad(weighed(f, key), (0, 1)))(params, state)

  assert worst(gradient(None), gradient(Autodiff())) < 1e-12


@pytest.mark.usefixtures("looped")
def test_a_small_batch_is_one_chunk(monkeypatch):
  assert loops() == 2  # over time steps, forward and backward
  clear_programs()
  monkeypatch.setattr(chunk_size, "MANY_ROWS", T * B)
  monkeypatch.setattr(chunk_size, "MANY_BYTES", 0)
  monkeypatch.setattr(chunk_size, "FULL_SPEED_ROWS", 2 * B)
  assert loops() == 2
  assert loops(batch=B + 1) > 2


@pytest.mark.parametrize("cell", [lstm, gru])
@pytest.mark.usefixtures("looped")
def test_a_small_model_is_one_chunk(cell, monkeypatch):
  monkeypatch.setattr(chunk_size, "MANY_ROWS", 0)
  monkeypatch.setattr(chunk_size, "FULL_SPEED_ROWS", 2 * B)
  # Saved in float32: four gates, c and h; or five local gradients and h.
  size = 4 * T * B * 6 * H
  monkeypatch.setattr(chunk_size, "MANY_BYTES", size)
  assert loops(cell) == 2
  clear_programs()
  monkeypatch.setattr(chunk_size, "MANY_BYTES", size - 1)
  assert loops(cell) > 2


def test_a_linear_recurrence_has_chunks_if_its_products_are_large(monkeypatch):
  monkeypatch.setattr(chunk_size, "FULL_SPEED_ROWS", 2 * B)
  size = 4 * T * B * 2 * H  # bytes of x W_x, [T, B, 2H] in float32
  monkeypatch.setattr(chunk_size, "MANY_BYTES_OF_LINEAR", size)
  assert loops(min_gru) == 2
  clear_programs()
  monkeypatch.setattr(chunk_size, "MANY_BYTES_OF_LINEAR", size - 1)
  assert loops(min_gru) > 2


@pytest.mark.usefixtures("large", "looped")
def test_on_a_gpu_the_whole_sequence_is_one_chunk():
  assert loops() > 2
  with traced_for("cuda"):
    assert loops() == 2


@pytest.mark.usefixtures("large")
def test_the_steps_of_a_short_chunk_take_no_loop(monkeypatch):
  assert loops() == 2  # over chunks, forward and backward
  clear_programs()
  monkeypatch.setattr(in_place, "MOST_UNROLLED", 1)
  assert loops() == 4


@pytest.mark.usefixtures("large", "looped")
def test_outputs_alone_are_one_loop():
  def outputs(adjoint):
    params = lstm.init(jax.random.key(0), D, H)
    f = jax.jit(lambda xs: unroll(lstm, params, None, xs, adjoint=adjoint)[1])
    return f.lower(jnp.ones((2 * T, B, D))).as_text()

  expected = outputs(Autodiff())
  assert expected.count("stablehlo.while") == 1
  assert outputs(Explicit()).count("stablehlo.while") == 1


def test_chunks_of_one_step_copy_no_inputs():
  steps, batch, size = 32, 1024, 32
  params = jax.eval_shape(lambda: gru.init(jax.random.key(0), size, size))

  def loss(params, xs, dhs, reset):
    return jnp.sum(unroll(gru, params, None, xs, reset=reset)[1] * dhs)

  shape = steps, batch, size
  xs = jax.ShapeDtypeStruct(shape, jnp.float32)
  reset = jax.ShapeDtypeStruct(shape[:2], bool)
  lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, xs, xs, reset)
  # As users compile it: without fusion emitters (conftest), XLA copies nothing.
  old = jax.__version_info__ < (0, 11)  # later ones know no such option
  options = {"xla_cpu_use_fusion_emitters": True} if old else {}
  program = lowered.compile(compiler_options=options)
  reserved = program.memory_analysis().temp_size_in_bytes
  # Five local gradients and h are saved; what one step needs is little.
  assert 6 < reserved / (4 * steps * batch * size) < 7


@pytest.mark.parametrize(
  ("steps", "batch", "expected"),
  [
    # C is the least divisor of T from ⌈1024 / B⌉ to below twice that, if there
    # is one below T; else ⌈1024 / B⌉.
    *((16, 512, []), (17, 512, [2]), (16, 513, [2]), (5, 2000, [1])),
    *((200, 64, [20]), (25, 400, [5]), (23, 400, [3]), (150, 64, [25])),
    *((31, 300, [4]), (5, 5000, [1]), (11, 1000, [2])),
  ],
)
def test_more_than_8192_rows_are_chunks_of_1024_or_more(
  steps, batch, expected, monkeypatch
):
  monkeypatch.setattr(chunk_size, "MANY_BYTES", 0)
  chunks = []
  scan = checkpointing._scan_chunks

  def recorded(cell, options, policy, chunk, *inputs):
    chunks.append(chunk)
    return scan(cell, options, policy, chunk, *inputs)

  monkeypatch.setattr(checkpointing, "_scan_chunks", recorded)
  params = lstm.init(jax.random.key(0), D, H)
  xs = jax.ShapeDtypeStruct((steps, batch, D), jnp.float32)
  jax.eval_shape(lambda xs: unroll(lstm, params, None, xs), xs)
  assert chunks == expected


def test_an_even_chunk_above_the_default_is_below_t():
  """In a linear recurrence, fewer rows than 2,048 can go by chunks."""
  xs = jax.ShapeDtypeStruct((100, 16, D), jnp.float32)
  params = min_gru.init(jax.random.key(0), D, H)
  state = min_gru.initial_state(params, (16,))
  # 64 steps have 1,024 rows; from 64 on, only 100 divides 100.
  assert chunk_size.even_chunk(state, xs) == 64


KEPT_LONG = {  # biases with which a state is kept for some hundred steps
  "min_gru": lambda b: jnp.where(jnp.arange(b.size) < H, -6.0, 1.0),
  "lru": None,
  "gru": lambda b: b.at[: 2 * H].set(5.0),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("name", KEPT_LONG)
def test_chunks_round_no_state_or_cotangent_to_bfloat16(
  name, chunk, key, monkeypatch
):
  """With bfloat16 weights; roundings of 2⁻⁹ would add up over 200 steps."""
  cell, steps = TABLE[name].cell, 199  # with C = 7, the last chunk is shorter
  params = cell.init(key, D, H, jnp.float32)
  if KEPT_LONG[name]:
    params = params._replace(b=KEPT_LONG[name](params.b))
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  state = cell.initial_state(params, (B,))
  xs = jax.random.normal(key, (steps, B, D), jnp.bfloat16)

  def loss(params, state, adjoint):
    last, hs = unroll(cell, params, state, xs, adjoint=adjoint)
    total = last.h.astype(jnp.float32).sum() + hs.astype(jnp.float32).mean()
    return total, last

  def run(adjoint):
    f = partial(loss, adjoint=adjoint)
    gradient, last = jax.jit(jax.grad(f, (0, 1), has_aux=True))(params, state)
    return *gradient, last, unroll(cell, params, state, xs, adjoint=adjoint)[0]

  expected = run(Explicit(chunk=steps))
  monkeypatch.setattr(chunk_size, "MANY_ROWS", 0)
  monkeypatch.setattr(chunk_size, "MANY_BYTES", 0)
  monkeypatch.setattr(chunk_size, "MANY_BYTES_OF_LINEAR", 0)
  monkeypatch.setattr(chunk_size, "FULL_SPEED_ROWS", chunk * B)
  for adjoint in (
    Explicit(),  # as for a large batch
    Explicit(chunk=chunk),
    Explicit("recompute", chunk),
  ):
    for a, b in zip(
      *map(jax.tree.leaves, (run(adjoint), expected)), strict=True
    ):
      a, b = (np.asarray(x, np.float32) for x in (a, b))
      assert abs(a - b).max() <= 2**-8 * abs(b).max()
