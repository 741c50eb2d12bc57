"""`scanned` against the ScannedRNN that RL agents use: a cell in `nn.scan`."""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import export

from lstm_jax import gru, lstm, min_gru, projected_lstm, rnn, slstm, unroll
from lstm_jax.interop.flax import scanned
from tests.draws import B, D, H, T, normal_like, weighed, worst

pytestmark = pytest.mark.usefixtures("flax_promotion")
FLAX = {gru: "GRUCell", lstm: "OptimizedLSTMCell", rnn: "SimpleCell"}
EXHAUSTIVE = pytest.mark.exhaustive
EACH_CELL = pytest.mark.parametrize(
  "cell",
  [
    pytest.param(gru, id="gru"),
    pytest.param(lstm, id="lstm", marks=EXHAUSTIVE),
    pytest.param(rnn, id="rnn", marks=EXHAUSTIVE),
  ],
)
SEED = jax.random.key(7)


def widened(leaf):
  """Return the shape of an array in float64."""
  return jax.ShapeDtypeStruct(leaf.shape, jnp.float64)


def by_hand(cell, hidden_size, number=0):
  """Return a ScannedRNN whose weights have this number, as in GRUCell_1."""

  class ScannedRNN(linen.Module):
    @partial(
      linen.scan, variable_broadcast="params", split_rngs={"params": False}
    )
    @linen.compact
    def __call__(self, carry, x):
      ins, resets = x
      again = resets.reshape(*resets.shape, 1)
      carry = jax.tree.map(lambda h: jnp.where(again, 0.0 * h, h), carry)
      make = getattr(linen, FLAX[cell])
      return [make(hidden_size) for _ in range(number + 1)][-1](carry, ins)

  return ScannedRNN


def agent(module):
  """Return a policy and value network with a recurrent layer in it."""

  class Agent(linen.Module):
    @linen.compact
    def __call__(self, carry, x):
      observations, resets = x
      ins = linen.relu(linen.Dense(D + 2)(observations))
      carry, ys = module()(carry, (ins, resets))
      return carry, linen.Dense(3)(ys), linen.Dense(1)(ys)[..., 0]

  return Agent()


def draw(cell, batch=(B,)):
  """Return (carry, observations, resets), the first two in float64."""
  like = scanned(cell).initialize_carry(batch, H)
  like = jax.tree.map(widened, like)
  carry, xs = normal_like(SEED, (like, jnp.zeros((T, *batch, D))))
  return carry, xs, jax.random.bernoulli(SEED, 0.4, (T, *batch))


@EACH_CELL
@pytest.mark.parametrize(
  ("batch", "number"),
  [((B,), 0), ((B,), 1), pytest.param((2, B), 0, marks=EXHAUSTIVE)],
)
def test_outputs_and_gradients_are_those_of_the_loop_by_hand(
  cell, batch, number
):
  carry, xs, resets = draw(cell, batch)
  assert resets.any() and not resets.all()
  ours, theirs = agent(scanned(cell)), agent(by_hand(cell, H, number))
  variables = jax.eval_shape(theirs.init, SEED, carry, (xs, resets))
  variables = normal_like(SEED, jax.tree.map(widened, variables))

  def run(module):
    def f(variables, carry, xs):
      return module.apply(variables, carry, (xs, resets))

    gradient = jax.grad(weighed(f, SEED), (0, 1, 2))
    return jax.jit(lambda *args: (f(*args), gradient(*args)))(
      variables, carry, xs
    )

  assert worst(run(ours), run(theirs)) < 1e-12


@pytest.mark.exhaustive
@EACH_CELL
def test_weights_have_the_names_and_initial_values_of_flax(cell):
  carry, xs, _ = draw(cell)
  x = xs[:1], jnp.zeros((1, B))  # as agents call `init`: resets are floats
  ours = agent(scanned(cell)).init(SEED, carry, x)
  assert worst(ours, agent(by_hand(cell, H)).init(SEED, carry, x)) == 0
  assert FLAX[cell] + "_0" in ours["params"]["ScannedRNN_0"]


@pytest.mark.parametrize(
  "cell", [min_gru, pytest.param(slstm, marks=EXHAUSTIVE)]
)
def test_any_other_cell_has_its_own_weights(cell):
  carry, xs, resets = draw(cell)
  module = scanned(cell)()
  variables = module.init(SEED, carry, (xs, resets))
  params = normal_like(SEED, cell.init(SEED, D, H, jnp.float64))
  assert jax.tree.map(jnp.shape, params) == (
    jax.tree.map(jnp.shape, variables["params"]["cell"])
  )
  variables = {"params": {"cell": params}}
  state = carry if cell is slstm else rnn.RNNState(carry)
  last, hs = unroll(cell, params, state, xs, reset=resets)
  expected = (last if cell is slstm else last.h), hs
  assert worst(module.apply(variables, carry, (xs, resets)), expected) == 0


@pytest.mark.exhaustive
def test_a_projected_state_has_the_hidden_size_of_its_c():
  size = 2 * H  # h has half of it
  carry = scanned(projected_lstm).initialize_carry(B, size)
  assert (carry[0].shape, carry[1].shape) == ((B, size), (B, H))
  _, xs, resets = draw(gru)
  xs = xs.astype(jnp.float32)
  (_, hs), variables = scanned(projected_lstm)().init_with_output(
    SEED, carry, (xs, resets)
  )
  params = variables["params"]["cell"]
  assert params.w_r.shape == (size, H)
  state = projected_lstm.initial_state(params, (B,))
  _, expected = unroll(projected_lstm, params, state, xs, reset=resets)
  assert worst(hs, expected) == 0


class Memory(NamedTuple):
  """The state of a cell with a matrix for each sequence."""

  h: jax.Array  # [..., H]
  c: jax.Array  # [..., H, 2]


class OwnCell:
  """A cell whose `init` needs a dtype, and takes no other sizes than H."""

  def init(key, input_size, hidden_size, dtype):
    if not input_size == hidden_size == H:
      raise ValueError(f"got {input_size} and {hidden_size}")
    return rnn.init(key, input_size, hidden_size, dtype)

  def initial_state(params, batch_shape=()):
    h = jnp.zeros((*batch_shape, len(params.b)), params.b.dtype)
    return Memory(h, jnp.stack([h, h], -1))

  def project(params, x):
    return x @ params.w_x

  def recur(params, state, ax):
    c = state.c + ax[..., None]
    return Memory(jnp.tanh(c.sum(-1)), c), ax, c

  def recur_backward(*args):
    raise NotImplementedError  # outputs need no backward

  parameter_gradients = recur_backward


def test_a_cell_of_ones_own_may_have_a_matrix_and_refuse_sizes_and_defaults():
  carry = scanned(OwnCell).initialize_carry(B, H)
  x = jnp.ones((T, B, H), jnp.float32), jnp.zeros((T, B))
  run = scanned(OwnCell)().init_with_output
  (last, hs), variables = jax.eval_shape(run, SEED, carry, x)
  assert (hs.shape, last.c.shape) == ((T, B, H), (B, H, 2))
  assert variables["params"]["cell"].w_x.shape == (H, H)


def test_a_cell_that_is_not_hashable_is_refused():
  with pytest.raises(ValueError, match=r"be hashable, .* SimpleNamespace$"):
    scanned(SimpleNamespace())


def test_the_number_of_steps_may_be_symbolic():
  carry, xs, resets = draw(gru)
  module = scanned(gru)()
  variables = module.init(SEED, carry, (xs, resets))

  def run(xs, resets):
    return module.apply(variables, carry, (xs, resets))

  (steps,) = export.symbolic_shape("T")
  shapes = (
    jax.ShapeDtypeStruct((steps, *x.shape[1:]), x.dtype) for x in (xs, resets)
  )
  call = export.export(jax.jit(run))(*shapes).call
  for n in (1, T):
    args = xs[:n], resets[:n]
    assert worst(call(*args), run(*args)) < 1e-12


def test_a_reset_of_any_dtype_counts_if_it_is_not_zero():
  carry, xs, resets = draw(gru)
  module = scanned(gru)()
  variables = module.init(SEED, carry, (xs, resets))
  expected = module.apply(variables, carry, (xs, resets))
  numbers = -0.5 * resets.astype(jnp.float32), -2 * resets.astype(jnp.int32)
  for given in (*numbers, resets.tolist()):
    assert worst(module.apply(variables, carry, (xs, given)), expected) == 0


def test_inputs_are_converted_to_the_dtype_of_the_weights():
  carry = scanned(gru).initialize_carry(B, H)
  pixels = np.arange(T * B * D, dtype=np.uint8).reshape(T, B, D)
  resets = np.zeros((T, B))
  module = scanned(gru)()
  floats = pixels.astype(np.float32)
  expected, variables = module.init_with_output(SEED, carry, (floats, resets))
  for dtype in (np.uint8, np.int64, np.float64):
    x = pixels.astype(dtype), resets
    assert worst(module.apply(variables, carry, x), expected) == 0


def test_the_initial_carry_is_zero_and_as_flax_has_it():
  for cell, name in FLAX.items():
    flax_cell = getattr(linen, name)(H)
    expected = flax_cell.initialize_carry(SEED, (B, H))
    for size in (B, np.int64(B)):
      assert worst(scanned(cell).initialize_carry(size, H), expected) == 0
  assert scanned(min_gru).initialize_carry((2, B), H).shape == (2, B, H)


def test_equal_cells_give_the_same_module():
  assert scanned(gru)() == scanned(gru)()
  assert scanned(gru) is not scanned(lstm)


# In tests.draws, T is 5, B 3, D 4 and H 6.
@pytest.mark.parametrize(
  ("cell", "change", "message"),
  [
    (gru, {"xs": jnp.ones((B, D))}, "ins must be [T, 3, D], to fit the carry"),
    (gru, {"xs": jnp.ones((T, B))}, "ins must be [T, 3, D], to fit the carry"),
    (gru, {"xs": jnp.ones((B, T, D))}, "the carry, got (3, 5, 4)"),
    (
      gru,
      {"carry": jnp.ones(H), "xs": jnp.ones(D), "resets": jnp.ones(())},
      "ins must be [T, D], to fit the carry, got (4,)",
    ),
    (gru, {"xs": jnp.ones((0, B, D))}, "one step (T ≥ 1), got (0, 3, 4)"),
    (gru, {"resets": jnp.ones(B)}, "resets must be [5, 3], as ins, got (3,)"),
    (gru, {"resets": jnp.ones((B, T))}, "must be [5, 3], as ins, got (3, 5)"),
    (lstm, {"carry": jnp.ones((B, H))}, "carry must be a tuple (c, h), as "),
    (
      gru,
      {"carry": (jnp.ones((B, H)),) * 2},
      "must be an array, as initialize",
    ),
    (slstm, {"carry": jnp.ones((B, H))}, "carry must be a SLSTMState, as "),
    (gru, {"carry": jnp.ones(())}, "that initialize_carry gives it, got ()"),
    (
      lstm,
      {"carry": (jnp.ones((B, H)), jnp.ones((B, H + 1)))},
      "initialize_carry gives it, got (3, 6), (3, 7)",
    ),
    (
      lstm,
      {"carry": (jnp.ones((B, H)), jnp.ones((1, H)))},
      "initialize_carry gives it, got (3, 6), (1, 6)",
    ),
  ],
)
def test_arguments_that_do_not_fit_are_an_error_of_one_line(
  cell, change, message
):
  carry, xs, resets = draw(cell)
  given = {"carry": carry, "xs": xs, "resets": resets} | change
  with pytest.raises(ValueError) as error:
    scanned(cell)().init(SEED, given["carry"], (given["xs"], given["resets"]))
  assert message in f"{error.value}" and "\n" not in f"{error.value}"


@pytest.mark.parametrize(
  ("cell", "name"),
  [(linen.GRUCell, "GRUCell"), ("gru", "str"), (gru.step, "step")],
)
def test_a_cell_that_cannot_be_reset_is_an_error_that_names_it(cell, name):
  match = f"unroll can reset, such as lstm_jax.gru, got {name}, which has no "
  with pytest.raises(ValueError, match=match):
    scanned(cell)
