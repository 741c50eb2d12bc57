"""`unroll` outside of `jax.jit`: a program is compiled once."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import (
  Autodiff,
  Explicit,
  Step,
  gru,
  lstm,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.cells.platform import traced_for
from lstm_jax.language.readout import linear_cross_entropy
from lstm_jax.sequence import state_cotangents
from lstm_jax.sequence.in_place import scan_in_place
from tests.compiling import count_programs
from tests.contract import each_cell
from tests.draws import arguments, weighed, worst

# No other test has these sizes: it would have compiled the program already.
T, B, D, H = 6, 9, 4, 8
EXPLICIT = {
  "gates": Explicit(),
  "chunks": Explicit(chunk=2),
  "recompute": Explicit("recompute", 2),
}
OTHERS = Step(), Autodiff()  # JAX compiles their transposed loop at every call


def compiles_once(f):
  """Return whether f compiles something, and a second call nothing."""
  with count_programs() as first:
    f()
  with count_programs() as second:
    f()
  return bool(first) and not second


def inputs_of(cell, key):
  return arguments(cell, key, steps=T, batch=(B,), size=D, hidden=H)


@pytest.mark.everyday(1)
@each_cell("adjoint", EXPLICIT, others=["gates"])
def test_a_second_gradient_compiles_nothing(cell, adjoint, key):
  lengths = jnp.arange(B) % T

  def run(params, state, xs):
    return unroll(
      cell, params, state, xs, lengths=lengths, adjoint=EXPLICIT[adjoint]
    )

  args = inputs_of(cell, key)
  assert compiles_once(lambda: run(*args))
  gradient = jax.value_and_grad(weighed(run, key), (0, 1, 2))
  assert compiles_once(lambda: gradient(*args))
  assert worst(tuple(gradient(*args)), tuple(jax.jit(gradient)(*args))) < 1e-12


@pytest.mark.parametrize("adjoint", OTHERS, ids=str)
def test_second_outputs_by_step_or_autodiff_compile_nothing(adjoint, key):
  args = inputs_of(lstm, key)
  assert compiles_once(lambda: unroll(lstm, *args, adjoint=adjoint))


@pytest.mark.exhaustive
def test_a_second_call_with_layers_or_directions_compiles_nothing():
  xs = jnp.ones((T + 1, B, D))  # below, another T: new programs
  params = gru.init(jax.random.key(0), D, H)
  layers = params, gru.init(jax.random.key(1), H, H)
  assert compiles_once(lambda: unroll_stack(gru, layers, None, xs))
  both = params, params
  assert compiles_once(lambda: unroll_both(gru, both, None, xs[:-2]))
  flags = {"reset": jnp.ones((T, B), bool), "lengths": jnp.full(B, T - 1)}
  assert compiles_once(lambda: unroll_both(gru, both, None, xs[1:], **flags))
  for noise in (
    {"zoneout": gru.GRUState(jnp.full(H, 0.1))},
    {"state_dropout": jnp.ones(H)},
  ):
    assert compiles_once(
      lambda noise=noise: unroll(gru, params, None, xs, **noise)
    )


def test_second_cotangents_of_states_compile_nothing():
  xs = jnp.ones((T + 3, B, D))
  params = gru.init(jax.random.key(0), D, H)
  d_last = gru.initial_state(params, (B,))
  assert compiles_once(lambda: state_cotangents(gru, params, None, xs, d_last))


def test_vmap_over_weights_compiles_one_program_for_the_sequence(key):
  params, state, xs = inputs_of(gru, key)
  many = jax.tree.map(lambda w: jnp.stack([w, w]), params)
  with count_programs() as programs:
    jax.vmap(lambda params: unroll(gru, params, state, xs)[1])(many)
  # Five small ones besides. Operation by operation, jax 0.10 compiles nine.
  assert 0 < len(programs) <= 6


def test_an_array_of_another_shape_or_platform_is_another_program():
  xs = jnp.ones((T + 2, B + 2, D))
  params = lstm.init(jax.random.key(0), D, H)
  assert compiles_once(lambda: unroll(lstm, params, None, xs))
  assert compiles_once(lambda: unroll(lstm, params, None, xs[1:]))

  def jaxpr():
    return str(jax.make_jaxpr(lambda xs: unroll(lstm, params, None, xs))(xs))

  on_cpu = jaxpr()
  with traced_for("cuda"):
    on_gpu = jaxpr()
  assert on_cpu != on_gpu
  assert jaxpr() == on_cpu


def test_in_a_compiled_function_unroll_is_inlined():
  xs = jnp.ones((T, B, D))
  params = lstm.init(jax.random.key(0), D, H)

  def loss(params, xs):
    return unroll(lstm, params, None, xs)[1].sum()

  # JAX 0.12 inlines where it lowers, earlier ones where they trace.
  text = jax.jit(jax.grad(loss)).lower(params, xs).as_text()
  assert "stablehlo.while" in text
  assert "@program" not in text  # the function of `platform.compiled`


def test_a_second_loss_of_a_readout_compiles_nothing():
  hs, w, b = jnp.ones((T, B, H)), jnp.ones((H, 11)), jnp.ones(11)
  targets = jnp.zeros((T, B), int)
  for f in (linear_cross_entropy, jax.grad(linear_cross_entropy)):
    assert compiles_once(lambda f=f: f(hs, w, b, targets))


def test_a_cell_sees_values_in_a_gradient_without_jit(key):
  """With `jax.disable_jit`, a user may print within a cell, or stop in it.

  With `may_share`, which a backward passes, the scan is an operation, which JAX
  traces, unless `jit` is disabled. Here its body is a forward step.
  """
  params, state, xs = arguments(lstm, key)
  seen = []

  def body(params, state, ax, x):
    seen.append(isinstance(state.h, jax.core.Tracer))
    return lstm.recur(params, state, ax)

  with jax.disable_jit():
    axs = lstm.project(params, xs)
    scan_in_place(
      body, params, state, axs, xs=None, reverse=False, may_share=True
    )
  assert seen
  assert not any(seen)
