"""What the converters of Flax's weights refuse, and weights of an ensemble."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax import gru, lstm, peephole_lstm, rnn
from lstm_jax.interop.cudnn import to_cudnn
from lstm_jax.interop.equinox import to_equinox
from lstm_jax.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from lstm_jax.interop.haiku import to_haiku
from lstm_jax.interop.keras import to_keras
from lstm_jax.interop.torch import to_torch
from tests.draws import B, D, H, normal_like, worst
from tests.interop.flax_pairs import EACH_CELL, linen_cell

pytestmark = pytest.mark.usefixtures("flax_promotion")


def test_weights_of_other_modules_are_refused(key):
  # In tests.draws, D is 4 and H 6.
  xs = jnp.ones((B, D))
  with pytest.raises(ValueError, match=r"weights of an LSTMCell.*got kernel"):
    from_linen({"kernel": xs})
  weights = to_linen(gru.init(key, D, H))
  weights["hn"] = {"kernel": weights["hn"]["kernel"]}
  with pytest.raises(ValueError, match="hn must have a bias, got kernel"):
    from_linen(weights)
  weights = to_linen(lstm.init(key, D, H))
  weights["if"]["kernel"] = jnp.zeros((D, H + 1))
  expected = (
    r"^if.kernel must be \[4, 6\], as ii.kernel is \[4, 6\], got \(4, 7"
  )
  with pytest.raises(ValueError, match=expected):
    from_linen(weights)
  for name, expected in (
    ("ii", r"\[..., D, H\]"),
    ("hi", r"\[6, 6\], as ii.kernel is \[4, 6\]"),
  ):
    weights = to_linen(lstm.init(key, D, H))
    weights[name]["kernel"] = jnp.zeros(H)
    expected = rf"^{name}.kernel must be {expected}, got \(6,\)$"
    with pytest.raises(ValueError, match=expected):
      from_linen(weights)
  weights = to_linen(lstm.init(key, D, H))
  with pytest.raises(
    ValueError, match=r'SimpleCell, got params; pass variables\["params"\]$'
  ):
    from_linen({"params": weights})
  for other in ((xs,), 5, peephole_lstm.init(key, D, H)):
    kind = type(other).__name__
    with pytest.raises(
      ValueError, match=f"^expected the params of lstm, gru or rnn, got {kind}$"
    ):
      to_linen(other)
  with pytest.raises(ValueError, match=r"an nnx LSTMCell.*, got flax.*Linear$"):
    from_nnx(nnx.Linear(D, H, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
  "make",
  [
    partial(nnx.SimpleCell, activation_fn=nnx.relu),
    partial(nnx.SimpleCell, residual=True),
    partial(nnx.GRUCell, gate_fn=nnx.relu),
    partial(nnx.LSTMCell, activation_fn=nnx.relu),
    partial(nnx.OptimizedLSTMCell, gate_fn=nnx.relu),
    type("Own", (nnx.LSTMCell,), {}),
  ],
)
def test_an_nnx_cell_with_other_equations_is_refused(make):
  module = make(D, H, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="computes something else than our cell"):
    from_nnx(module)


def test_linen_weights_that_do_not_fit_are_named(key):
  weights = to_linen(lstm.init(key, D, H))
  for name, layer, text in (
    ("ii", {"bias": jnp.ones(H)}, "^ii must have no bias"),
    ("ii", {"lora": jnp.ones(H)}, "^ii must have no lora$"),
    ("hi", {"bias": jnp.ones((1, H))}, r"^hi.bias must be .*got \(1, 6\)"),
    ("hf", {"kernel": jnp.ones((H + 1, H))}, r"^hf.kernel must be \[6, 6\]"),
    ("if", {"kernel": jnp.ones((D + 1, H))}, r"^if.kernel must be \[4, 6\]"),
    ("ho", {"kernel": jnp.ones((H, H), int)}, "^ho.kernel must hold floats"),
  ):
    changed = weights | {name: weights[name] | layer}
    with pytest.raises(ValueError, match=text):
      from_linen(changed)
  with pytest.raises(ValueError, match=r'^expected the collection "params"'):
    from_linen(lstm.init(key, D, H))


@pytest.mark.exhaustive
@EACH_CELL
def test_the_weights_of_an_ensemble_are_those_of_a_vmapped_module(name, key):
  cell = linen_cell(name)
  carry, x = jnp.zeros((B, H)), jnp.zeros((B, D))
  carry = (carry, carry) if "LSTM" in name else carry

  def make(key):
    return cell.init(key, carry, x)["params"]

  keys = jax.random.split(key, 3)
  variables = normal_like(key, jax.eval_shape(jax.vmap(make), keys))
  ours, found = from_linen(variables)
  for member in range(len(keys)):
    one = jax.tree.map(lambda leaf, n=member: leaf[n], variables)
    same, params = from_linen(one)
    expected = jax.tree.map(lambda leaf, n=member: leaf[n], found)
    assert same is ours and worst(params, expected) == 0
  assert worst(to_linen(found), variables) == 0


def test_the_leading_axes_of_all_params_are_the_same(key):
  members = jax.vmap(lambda key: lstm.init(key, D, H))(jax.random.split(key, 4))
  cut = members._replace(w_h=members.w_h[:3])
  shapes = "w_x (4, 4, 24), w_h (3, 6, 24), b (4, 24)"
  message = f"all params must have the same leading axes, got {shapes}"
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    to_linen(cut)
  weights = to_linen(members)
  weights["hi"]["bias"] = weights["hi"]["bias"][:3]
  message = "hi.bias must be [4, 6], as ii.kernel is [4, 4, 6], got (3, 6)"
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    from_linen(weights)


def test_params_that_do_not_fit_each_other_are_refused_by_converters(key):
  params = lstm.init(key, D, H)
  params = params._replace(b=params.b[:-H])
  for write in (
    to_linen,
    to_haiku,
    to_keras,
    to_equinox,
    lambda p: to_torch((p,)),
    lambda p: to_cudnn((p,)),
  ):
    with pytest.raises(ValueError, match=r"^weights do not fit each other"):
      write(params)


@pytest.mark.parametrize("cell", [lstm, gru, rnn])
def test_weights_do_not_share_arrays_with_their_source(cell, key):
  """A step that is donated its weights deletes them."""
  params = cell.init(key, D, H)
  expected = jax.tree.map(np.array, params)
  weights = to_linen(params)
  jax.tree.map(lambda x: x.delete(), params)
  _, params = from_linen(weights)
  jax.tree.map(lambda x: x.delete(), weights)
  assert worst(params, expected) == 0


@pytest.mark.parametrize("kind", [nnx.LSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_params_do_not_share_arrays_with_a_module(kind):
  module = kind(D, H, rngs=nnx.Rngs(0))
  _, params = from_nnx(module)
  jax.tree.map(lambda x: x.delete(), params)
  weights = jax.tree.leaves(nnx.state(module))
  assert not any(x.is_deleted() for x in weights)


@pytest.mark.parametrize(
  "kind",
  [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell],
)
def test_an_nnx_ensemble_has_the_weights_of_its_members(kind, key):
  def make(key):
    return kind(D, H, rngs=nnx.Rngs(key))

  keys = jax.random.split(key, 3)
  _, found = from_nnx(nnx.vmap(make)(keys))
  for member, one in enumerate(keys):
    _, expected = from_nnx(make(one))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(
      lambda x: (3, *x.shape), expected
    )
    for stacked, x in zip(found, expected, strict=True):
      assert (stacked[member] == x).all()


def test_an_nnx_cell_without_values_is_refused(key):
  abstract = nnx.eval_shape(lambda: nnx.GRUCell(D, H, rngs=nnx.Rngs(0)))
  for convert in (from_nnx, lambda cell: to_nnx(gru.init(key, D, H), cell)):
    with pytest.raises(
      ValueError, match=r"must be arrays, .* nnx\.eval_shape$"
    ):
      convert(abstract)
