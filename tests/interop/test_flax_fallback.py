"""Options, dtypes and shapes for which both modules run Flax's own RNN."""

import jax.numpy as jnp
import pytest
from flax import linen, nnx

from lstm_jax import gru
from lstm_jax.interop.flax import NNXRNN, LinenRNN, equivalence, modules
from tests.draws import B, D, H, T, worst
from tests.interop.flax_pairs import (
  count_unrolls,
  inputs,
  linen_cell,
  linen_difference,
  nnx_cell,
  nnx_difference,
)

pytestmark = pytest.mark.usefixtures("flax_promotion")


class LaterLinenGRU(linen.GRUCell):
  """A GRU as a later Flax might have it, with an option unknown here."""

  dropout: float = 0.0


class LaterNNXGRU(nnx.GRUCell):
  """The same for nnx; it does not keep the option under the option's name."""

  def __init__(self, in_features, hidden_features, *, dropout=0.0, rngs):
    super().__init__(in_features, hidden_features, rngs=rngs)
    self.keep_rate = 1 - dropout


def test_a_cell_whose_unknown_option_is_set_has_no_equivalent(monkeypatch):
  monkeypatch.setitem(equivalence.CELL_OF_TYPE, LaterLinenGRU, gru)
  assert equivalence.equivalent_cell(LaterLinenGRU(H)) is gru
  assert equivalence.equivalent_cell(LaterLinenGRU(H, dropout=0.5)) is None
  monkeypatch.setitem(equivalence.CELL_OF_TYPE, LaterNNXGRU, gru)
  cell = LaterNNXGRU(D, H, dropout=0.5, rngs=nnx.Rngs(0))
  assert equivalence.equivalent_cell(cell) is None


@pytest.mark.exhaustive
def test_a_narrow_dtype_runs_in_flax(key, monkeypatch):
  calls = count_unrolls(monkeypatch)
  xs = inputs(key, jnp.float32)
  for param_dtype in (jnp.float32, jnp.bfloat16):
    fields = {
      "dtype": jnp.bfloat16,
      "param_dtype": param_dtype,
      # QR, for orthogonal weights, has no bfloat16.
      "recurrent_kernel_init": linen.initializers.lecun_normal(),
    }
    cell = linen.OptimizedLSTMCell(H, **fields)
    assert linen_difference(cell, xs, key) == 0
    assert nnx_difference(nnx_cell("OptimizedLSTMCell", **fields), xs, key) == 0
  assert not calls


def test_dtypes_that_flax_refuses_are_refused(key):
  xs = inputs(key)  # float64, with weights in float32
  for module in (
    LinenRNN(linen.GRUCell(H)),
    NNXRNN(nnx.GRUCell(D, H, rngs=nnx.Rngs(0))),
  ):
    with pytest.raises(TypeError, match="carry"):
      module.init(key, xs) if isinstance(module, LinenRNN) else module(xs)


def test_a_carry_of_a_larger_batch_runs_in_flax(key):
  xs = inputs(key)[:1]
  carry = jnp.ones((B, H))
  cell = linen_cell("GRUCell")
  call = {"initial_carry": carry}
  assert linen_difference(cell, xs, key, call) < 1e-12
  outputs = nnx.RNN(nnx_cell("GRUCell"))(xs, initial_carry=carry)
  assert outputs.shape == (B, T, H)
  found = NNXRNN(nnx_cell("GRUCell"))(xs, initial_carry=carry)
  assert worst(found, outputs) < 1e-12


@pytest.mark.parametrize("time_major", [False, True])
def test_without_time_steps_the_results_are_those_of_flax(time_major, key):
  xs = jnp.zeros((0, B, D) if time_major else (B, 0, D))
  options = {"time_major": time_major, "reverse": True, "return_carry": True}
  cell = linen_cell("GRUCell", carry_init=linen.initializers.ones)
  for ours, theirs in (
    (
      kind(cell, **options).init_with_output(key, xs)[0]
      for kind in (LinenRNN, linen.RNN)
    ),
    (
      kind(nnx_cell("GRUCell"), **options)(xs, initial_carry=jnp.ones((B, H)))
      for kind in (NNXRNN, nnx.RNN)
    ),
  ):
    assert worst(ours[0], theirs[0]) == 0
    assert ours[1].shape == theirs[1].shape == (*xs.shape[:2], H)


@pytest.mark.exhaustive
def test_lengths_that_flax_broadcasts_run_in_flax(key):
  cell, xs = linen_cell("GRUCell"), inputs(key)
  for lengths in (jnp.array([2]), jnp.array(2)):
    call = {"seq_lengths": lengths}
    assert linen_difference(cell, xs, key, call) < 1e-12


def test_the_rnn_of_flax_gets_every_argument(monkeypatch):
  calls = []

  def call(module, inputs, **arguments):
    calls.append((inputs, arguments))

  monkeypatch.setattr(modules, "LINEN_CALL", call)
  monkeypatch.setattr(nnx.RNN, "__call__", call)
  names = "return_carry", "time_major", "reverse", "keep_order"
  given = {"initial_carry": "carry", "seq_lengths": "lengths"}
  given |= {name: name for name in names}  # true, and all different
  # `unroll` computes neither of these cells.
  linen_rnn = LinenRNN(linen_cell("MGUCell"))
  linen_rnn.apply({}, "xs", init_key="key", **given)
  nnx_rnn = NNXRNN(nnx_cell("SimpleCell", residual=True))
  nnx_rnn("xs", rngs="rngs", **given)
  assert calls == [
    ("xs", given | {"init_key": "key"}),
    ("xs", given | {"rngs": "rngs"}),
  ]
