"""Weights from and to PyTorch: with PyTorch as the oracle, and without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Directions, gru, lstm, peephole_lstm, rnn, unroll_stack
from lstm_jax.interop import torch as interop
from lstm_jax.sequence import initial_stack_state
from tests.draws import B, D, H, T, normal_like, worst
from tests.interop.torch_layers import (
  ALL_CELLS,
  CELLS,
  make,
  nonlinearity_of,
  stack,
)

DIRECTIONS = pytest.mark.parametrize("both", [False, True], ids=["one", "both"])


@pytest.mark.everyday(4)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@ALL_CELLS
@DIRECTIONS
@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [
    ("float64", 1e-12),
    pytest.param("float32", 1e-5, marks=pytest.mark.exhaustive),
  ],
)
def test_outputs_and_every_gradient_are_those_of_torch(
  kind, both, dtype, tolerance, key
):
  """Gradients of the weights and inputs; the state before them is zero."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  torch.manual_seed(0)
  module = make(torch, kind, bidirectional=both, dtype=getattr(torch, dtype))
  cell, layers = interop.from_torch(module)
  assert cell is CELLS[kind]
  xs = jnp.asarray(normal_like(key, np.zeros((T, B, D))), dtype)
  inputs = torch.tensor(np.asarray(xs), requires_grad=True)
  expected, _ = module(inputs)
  states = initial_stack_state(cell, layers, (B,))
  cotangent = normal_like(jax.random.key(1), np.zeros(expected.shape, dtype))
  expected.backward(torch.tensor(np.asarray(cotangent)))

  @jax.jit
  def outputs_and_gradients(layers, xs):
    found, pullback = jax.vjp(
      lambda layers, xs: unroll_stack(cell, layers, states, xs)[1], layers, xs
    )
    return found, *pullback(cotangent)

  found, d_layers, d_xs = outputs_and_gradients(layers, xs)

  def close(ours, theirs):
    theirs = theirs.detach().numpy()
    size = max(np.abs(theirs).max(), 1)
    assert np.abs(np.asarray(ours) - theirs).max() < tolerance * size

  close(found, expected)
  close(d_xs, inputs.grad)
  gradients = interop.to_torch(d_layers)
  assert set(gradients) == set(dict(module.named_parameters()))
  for name, parameter in module.named_parameters():
    if name.startswith("bias_hh") and kind == "GRU":
      close(gradients[name][-H:], parameter.grad[-H:])
    elif not name.startswith("bias_hh"):  # bias_ih holds the gradient of our b
      close(gradients[name], parameter.grad)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@ALL_CELLS
def test_torch_computes_the_same_with_exported_weights(kind, key, tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  load_file = pytest.importorskip("safetensors.torch").load_file
  layers = stack(CELLS[kind], key, both=True)
  interop.save(tmp_path / "weights.safetensors", layers)
  module = make(torch, kind, bidirectional=True, dtype=torch.float64)
  module.load_state_dict(load_file(tmp_path / "weights.safetensors"))
  xs = normal_like(key, np.zeros((T, B, D)))
  expected, _ = module(torch.tensor(np.asarray(xs)))
  states = initial_stack_state(CELLS[kind], layers, (B,))
  _, found = unroll_stack(CELLS[kind], layers, states, xs)
  assert worst(np.asarray(found), expected.detach().numpy()) < 1e-12


@ALL_CELLS
@DIRECTIONS
def test_a_round_trip_keeps_the_weights(kind, both, key, tmp_path):
  layers = stack(CELLS[kind], key, both, sizes=(H, H, H))
  path = tmp_path / "weights.safetensors"
  interop.save(path, layers)
  for cell, same in (
    interop.load(path, nonlinearity=nonlinearity_of(kind)),
    interop.from_torch(
      interop.to_torch(layers), nonlinearity=nonlinearity_of(kind)
    ),
  ):
    assert cell is CELLS[kind]
    assert isinstance(same[0], Directions) == both
    assert worst(same, layers) == 0


@ALL_CELLS
def test_two_biases_are_added_and_a_missing_bias_is_zero(kind, key):
  layers = stack(CELLS[kind], key, both=False, sizes=(H,))
  weights = interop.to_torch(layers)
  cut = 2 * H if kind == "GRU" else None  # the candidate keeps both biases
  weights["bias_ih_l0"][:cut] -= 1
  weights["bias_hh_l0"][:cut] += 1
  _, found = interop.from_torch(weights, nonlinearity=nonlinearity_of(kind))
  assert worst(found, layers) < 1e-14
  without = {k: v for k, v in weights.items() if "bias" not in k}
  (found,) = interop.from_torch(without, nonlinearity=nonlinearity_of(kind))[1]
  assert not found.b.any() and worst(found.w_h, layers[0].w_h) == 0


def test_invalid_state_dicts_layers_and_files_are_refused(key, tmp_path):
  # In tests.draws, D is 4 and H 6: so 4H is 24.
  good = interop.to_torch(stack(lstm, key, both=False))

  def refused(match, **changes):
    changed = {**good, **changes}
    changed = {k: v for k, v in changed.items() if v is not None}
    with pytest.raises(ValueError, match=match):
      interop.from_torch(changed)

  refused("must have weight_hh_l0", weight_hh_l0=None)
  three = np.ones((2, 24, H))
  refused(
    r"weight_hh_l0 must be \[G·H, H\], got \[2, 24, 6\]$", weight_hh_l0=three
  )
  refused("^bias_hh_l1 is missing, got .*'bias_ih_l1'", bias_hh_l1=None)
  # As `torch.nn.utils.parametrizations` names the parts of a matrix.
  part = "parametrizations.weight_ih_l1.original1"
  refused(
    r"^weight_ih_l1 is missing, got .*parametrizations\.weight_ih_l1\.",
    **{"weight_ih_l1": None, part: good["weight_ih_l1"]},
  )
  refused(r"bias_ih_l0 must be \[24\], got \(3,\)", bias_ih_l0=np.ones(3))
  refused(r"must be \[4H, H\], \[3H, H\]", weight_hh_l0=np.ones((12, H)))
  refused("not tensors of an nn.LSTM.*: decoder", decoder=np.ones(2))
  refused(
    "weight_ih_l2 is missing, got .'weight_hh_l2'.$",
    weight_hh_l2=np.ones((24, H)),
  )
  refused("not tensors of .*: weight_hh_l3", weight_hh_l3=np.ones((24, H)))
  refused(r"weight_hh_l0 must be \[24, 2\]", weight_hr_l0=np.ones((2, H)))
  refused("weight_hr_l0 must be .*any, 6.* got", weight_hr_l0=np.ones((2, 3)))
  refused("not tensors of .*: weight_hr_l1", weight_hr_l1=np.ones((2, H)))
  refused("bias_ih_l0 must hold floats", bias_ih_l0=np.ones(24, int))
  refused("weight_ih_l1 must have 6 inputs", weight_ih_l1=np.ones((24, 9)))
  projected = {  # 10 rows are not 4H for any H
    "weight_ih_l0": np.ones((10, 4)),
    "weight_hh_l0": np.ones((10, 3)),
    "weight_hr_l0": np.ones((3, 2)),
  }
  with pytest.raises(ValueError, match=r"must be \[4H, P\] beside"):
    interop.from_torch(projected)
  both = interop.to_torch(stack(lstm, key, both=True))
  both["weight_ih_l0_reverse"] = np.ones((24, D + 1))
  with pytest.raises(ValueError, match=r"l0_reverse must have .* inputs, got"):
    interop.from_torch(both)
  with pytest.raises(ValueError, match="got nothing"):
    interop.from_torch({})
  with pytest.raises(ValueError, match="no cell with PeepholeLSTMParams"):
    interop.to_torch((peephole_lstm.init(key, D, H),))
  first, above = lstm.init(key, D, H), lstm.init(key, H, H)
  for others, message in (
    (
      (gru.init(key, H, H),),
      "layer 1 must be like .*LSTMParams.*got GRUParams",
    ),
    ((lstm.init(key, H, H + 1),), r"layer 1 must be .* got .* w_h \[7, 28\]"),
    ((Directions(above, above),), "in one direction, got .* both directions"),
    ((lstm.init(key, H + 1, H),), "weight_ih_l1 must have 6 inputs, got 7"),
  ):
    with pytest.raises(ValueError, match=message):
      interop.to_torch((first, *others))
  with pytest.raises(ValueError, match="at least one layer, got none"):
    interop.to_torch(())
  path = tmp_path / "weights.safetensors"
  path.write_bytes(b"\x80\x04 not a safetensors file, but a pickle")
  with pytest.raises(ValueError, match="is not a safetensors file"):
    interop.load(path)


def test_without_safetensors_the_extra_to_install_is_named(
  key, tmp_path, uninstall
):
  uninstall("safetensors")
  path = tmp_path / "weights.safetensors"
  message = r"pip install '\.\[interop\]'"
  with pytest.raises(ModuleNotFoundError, match=message):
    interop.save(path, stack(lstm, key, both=False))
  with pytest.raises(ModuleNotFoundError, match=message):
    interop.load(path)


def test_a_prefix_picks_a_layer_of_a_larger_state_dict(key, tmp_path):
  first, second = (stack(cell, key, both=False) for cell in (lstm, rnn))
  weights = {
    **{f"encoder.rnn.{k}": v for k, v in interop.to_torch(first).items()},
    **{f"decoder.{k}": v for k, v in interop.to_torch(second).items()},
    "embedding.weight": np.ones((3, 4)),
    "steps": np.array(7),
  }
  safetensors = pytest.importorskip("safetensors.numpy")
  path = tmp_path / "weights.safetensors"
  safetensors.save_file(
    {k: np.ascontiguousarray(v) for k, v in weights.items()}, path
  )
  for source, read in ((weights, interop.from_torch), (path, interop.load)):
    cell, found = read(source, prefix="encoder.rnn.")
    assert cell is lstm and worst(found, first) == 0
    cell, found = read(source, prefix="decoder.", nonlinearity="tanh")
    assert cell is rnn and worst(found, second) == 0
    message = r"^prefix must be 'decoder\.' or 'encoder\.rnn\.', got "
    for prefix in ("rnn.", "encoder.rnn", "encoder.", ""):
      with pytest.raises(ValueError, match=f"{message}'{prefix}'$"):
        read(source, prefix=prefix)
  del weights["encoder.rnn.weight_hh_l0"]
  with pytest.raises(ValueError, match="must have weight_hh_l0"):
    interop.from_torch(weights, prefix="encoder.rnn.")


@ALL_CELLS
def test_a_module_without_biases_is_written_and_read(kind, key, tmp_path):
  load_file = pytest.importorskip("safetensors.numpy").load_file
  layers = stack(CELLS[kind], key, both=True)
  with pytest.raises(
    ValueError, match=r"bias_ih_l0 must be 0 with .*, got magn"
  ):
    interop.to_torch(layers, bias=False)
  layers = jax.tree.map(lambda w: w if w.ndim > 1 else 0 * w, layers)
  weights = interop.to_torch(layers, bias=False)
  assert not any("bias" in name for name in weights)
  path = tmp_path / "weights.safetensors"
  interop.save(path, layers, bias=False)
  assert load_file(path).keys() == weights.keys()
  for _, found in (
    interop.from_torch(weights, nonlinearity=nonlinearity_of(kind)),
    interop.load(path, nonlinearity=nonlinearity_of(kind)),
  ):
    assert worst(found, layers) == 0


def test_a_state_dict_may_be_traced(key):
  layers = stack(gru, key, both=True)
  weights = {k: jnp.asarray(v) for k, v in interop.to_torch(layers).items()}
  found = jax.jit(lambda weights: interop.from_torch(weights)[1])(weights)
  assert worst(found, layers) == 0
