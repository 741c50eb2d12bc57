import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
  Directions,
  gru,
  lstm,
  peephole_lstm,
  projected_lstm,
  rnn,
  unroll_stack,
)
from lstm_jax.cells import RELU
from lstm_jax.interop import torch as interop
from lstm_jax.sequence import init_stack, initial_stack_state
from tests.draws import B, D, H, T, normal_like, worst

CELLS = {
  "LSTM": lstm,
  "projected": projected_lstm,
  "GRU": gru,
  "RNN": rnn,
  "RNN relu": rnn.with_activation(RELU),
}
ALL_CELLS = pytest.mark.parametrize("kind", CELLS)


def said(kind):
  """Return the nonlinearity that a state_dict of this kind does not say."""
  return {"RNN": "tanh", "RNN relu": "relu"}.get(kind)


def make(torch, kind, **options):
  if kind == "RNN relu":
    kind, options = "RNN", {"nonlinearity": "relu", **options}
  if kind == "projected":
    kind, options = "LSTM", {"proj_size": (H + 1) // 2, **options}
  return getattr(torch.nn, kind)(D, H, num_layers=2, **options)


DIRECTIONS = pytest.mark.parametrize("both", [False, True], ids=["one", "both"])


def stack(cell, key, both, sizes=(H, H), dtype=jnp.float64):
  layers = init_stack(cell, key, D, sizes, bidirectional=both, dtype=dtype)
  return normal_like(key, layers)


@pytest.mark.everyday(4)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@ALL_CELLS
@DIRECTIONS
@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [
    ("float64", 1e-10),
    pytest.param("float32", 1e-5, marks=pytest.mark.exhaustive),
  ],
)
def test_outputs_and_every_gradient_are_those_of_torch(
  kind, both, dtype, tolerance, key
):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  torch.manual_seed(0)
  module = make(torch, kind, bidirectional=both, dtype=getattr(torch, dtype))
  cell, layers = interop.from_torch(module)
  assert cell is CELLS[kind]
  xs = jnp.asarray(normal_like(key, np.zeros((T, B, D))), dtype)
  inputs = torch.tensor(np.asarray(xs), requires_grad=True)
  expected, _ = module(inputs)
  states = initial_stack_state(cell, layers, (B,))
  found, pullback = jax.vjp(
    lambda layers, xs: unroll_stack(cell, layers, states, xs)[1], layers, xs
  )
  cotangent = normal_like(jax.random.key(1), found)
  d_layers, d_xs = pullback(cotangent)
  expected.backward(torch.tensor(np.asarray(cotangent)))

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
    elif not name.startswith("bias_hh"):  # bias_ih has the sum's gradient
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
  assert worst(np.asarray(found), expected.detach().numpy()) < 1e-10


@ALL_CELLS
@DIRECTIONS
def test_a_round_trip_keeps_the_weights(kind, both, key, tmp_path):
  layers = stack(CELLS[kind], key, both, sizes=(H, H, H))
  path = tmp_path / "weights.safetensors"
  interop.save(path, layers)
  for cell, same in (
    interop.load(path, nonlinearity=said(kind)),
    interop.from_torch(interop.to_torch(layers), nonlinearity=said(kind)),
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
  _, found = interop.from_torch(weights, nonlinearity=said(kind))
  assert worst(found, layers) < 1e-15 * 10
  without = {k: v for k, v in weights.items() if "bias" not in k}
  (found,) = interop.from_torch(without, nonlinearity=said(kind))[1]
  assert not found.b.any() and worst(found.w_h, layers[0].w_h) == 0


def test_an_invalid_state_dict_is_refused(key, tmp_path):
  good = interop.to_torch(stack(lstm, key, both=False))

  def refused(match, **changes):
    changed = {**good, **changes}
    changed = {k: v for k, v in changed.items() if v is not None}
    with pytest.raises(ValueError, match=match):
      interop.from_torch(changed)

  refused("must have weight_hh_l0", weight_hh_l0=None)
  refused("bias_hh_l1 is missing", bias_hh_l1=None)
  refused(r"bias_ih_l0 must be \[24\], got \(3,\)", bias_ih_l0=np.ones(3))
  refused(r"must be \[4H, H\], \[3H, H\]", weight_hh_l0=np.ones((12, H)))
  refused("not tensors of an nn.LSTM.*: decoder", decoder=np.ones(2))
  refused("weight_ih_l2 is missing", weight_hh_l2=np.ones((24, H)))
  refused("not tensors of .*: weight_hh_l3", weight_hh_l3=np.ones((24, H)))
  refused(r"weight_hh_l0 must be \[24, 2\]", weight_hr_l0=np.ones((2, H)))
  refused("weight_hr_l0 must be .*any, 6.* got", weight_hr_l0=np.ones((2, 3)))
  refused("not tensors of .*: weight_hr_l1", weight_hr_l1=np.ones((2, H)))
  refused("bias_ih_l0 must hold floats", bias_ih_l0=np.ones(24, int))
  refused("weight_ih_l1 must have 6 inputs", weight_ih_l1=np.ones((24, 9)))
  projected = {
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
    ((gru.init(key, H, H),), "layer 1 must be as .*LSTMParams.*got GRUParams"),
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


class Tensor:
  """What the library uses of torch.Tensor."""

  is_meta = is_quantized = False

  def __init__(self, values, dtype=None, **attributes):
    self.values = np.asarray(values)
    self.dtype = dtype or f"torch.{self.values.dtype}"
    self.__dict__.update(attributes)

  def detach(self):
    return Tensor(self.values, self.dtype, detached=True)

  def cpu(self):
    return Tensor(self.values, self.dtype, readable=self.detached)

  def float(self):
    return Tensor(self.values.astype(np.float32), readable=self.readable)

  def numpy(self):
    assert self.readable
    if self.dtype != f"torch.{self.values.dtype}":
      raise TypeError(f"Got unsupported ScalarType {self.dtype}")
    return self.values


class Module:
  """What the library uses of torch.nn.Module."""

  def __init__(self, weights, **attributes):
    self.weights = weights
    self.__dict__.update(attributes)

  def state_dict(self):
    return self.weights


def tensors(layers, **attributes):
  arrays = interop.to_torch(layers)
  return {name: Tensor(x, **attributes) for name, x in arrays.items()}


@ALL_CELLS
def test_a_module_is_read_as_its_state_dict(kind, key):
  layers = stack(CELLS[kind], key, both=True)
  options = {"nonlinearity": said(kind)} if said(kind) else {}
  cell, same = interop.from_torch(Module(tensors(layers), **options))
  assert cell is CELLS[kind] and worst(same, layers) == 0


def test_neither_a_module_nor_a_state_dict_is_refused():
  with pytest.raises(ValueError, match="a module or a state_dict, got list"):
    interop.from_torch([1])
  with pytest.raises(ValueError, match="must be str, got 0"):
    interop.from_torch({0: np.ones(3)})


def test_the_nonlinearity_of_an_rnn_is_read_or_asked_for(key):
  weights = tensors(stack(rnn, key, both=False))
  with pytest.raises(ValueError, match="pass the module, or nonlinearity='ta"):
    interop.from_torch(weights)
  for given in ("gelu", "", ["tanh"]):
    message = f"nonlinearity must be tanh or relu, got {given!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
      interop.from_torch(weights, nonlinearity=given)
  module = Module(weights, nonlinearity="relu")
  message = "nonlinearity must be relu, the module's, got tanh"
  for source, prefix in (
    (module, ""),
    (Module({f"a.0.{k}": v for k, v in weights.items()}), "a.0."),
  ):
    source.a = Module({})
    setattr(source.a, "0", module)
    for given in (None, "relu"):
      cell, _ = interop.from_torch(source, prefix=prefix, nonlinearity=given)
      assert cell is CELLS["RNN relu"]
    with pytest.raises(ValueError, match=message):
      interop.from_torch(source, prefix=prefix, nonlinearity="tanh")


def test_a_prefix_picks_a_layer_of_a_larger_state_dict(key, tmp_path):
  first, second = (stack(cell, key, both=False) for cell in (lstm, rnn))
  weights = {
    **{f"encoder.rnn.{k}": v for k, v in interop.to_torch(first).items()},
    **{f"decoder.{k}": v for k, v in interop.to_torch(second).items()},
    "embedding.weight": np.ones((3, 4)),
    "steps": np.array(7),
  }
  numpy = pytest.importorskip("safetensors.numpy")
  path = tmp_path / "weights.safetensors"
  numpy.save_file(
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
def test_bfloat16_tensors_keep_dtype_and_values(kind, key, tmp_path):
  layers = stack(CELLS[kind], key, both=False, dtype=jnp.bfloat16)
  of_floats = {
    name: Tensor(x.astype(np.float32), "torch.bfloat16")
    for name, x in interop.to_torch(layers).items()
  }
  interop.save(tmp_path / "weights.safetensors", layers)
  for _, found in (
    interop.from_torch(of_floats, nonlinearity=said(kind)),
    interop.from_torch(interop.to_torch(layers), nonlinearity=said(kind)),
    interop.load(tmp_path / "weights.safetensors", nonlinearity=said(kind)),
  ):
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(found))
    assert worst(found, layers) == 0


@ALL_CELLS
def test_a_module_without_biases_is_written_and_read(kind, key, tmp_path):
  layers = stack(CELLS[kind], key, both=True)
  with pytest.raises(
    ValueError, match=r"bias_ih_l0 must be 0 with .*, got magn"
  ):
    interop.to_torch(layers, bias=False)
  layers = jax.tree.map(lambda w: w if w.ndim > 1 else 0 * w, layers)
  weights = interop.to_torch(layers, bias=False)
  assert not any("bias" in name for name in weights)
  interop.save(tmp_path / "weights.safetensors", layers, bias=False)
  for _, found in (
    interop.from_torch(weights, nonlinearity=said(kind)),
    interop.load(tmp_path / "weights.safetensors", nonlinearity=said(kind)),
  ):
    assert worst(found, layers) == 0


@pytest.mark.parametrize(
  ("attributes", "message"),
  [
    (
      {"is_meta": True},
      "^bias_ih_l0 has no values: it is a tensor on the meta",
    ),
    (
      {"is_quantized": True, "dtype": "torch.qint8"},
      "^bias_ih_l0 must hold floats, got a quantised torch.qint8$",
    ),
    ({"dtype": "torch.float8"}, "^bias_ih_l0 cannot be read as an array: Got"),
  ],
)
def test_a_tensor_without_readable_values_is_refused(attributes, message, key):
  weights = tensors(stack(lstm, key, both=False))
  weights["bias_ih_l0"] = Tensor(np.ones(4 * H), **attributes)
  with pytest.raises(ValueError, match=message):
    interop.from_torch(weights)


@pytest.mark.parametrize("kind", ["GRU", "projected"])
def test_later_changes_of_the_tensors_do_not_reach_the_params(kind, key):
  """Some transposes are contiguous, and could share the tensor's memory."""
  cell = CELLS[kind]
  options = {"projection_size": 1} if kind == "projected" else {}
  layers = (cell.init(key, 1, 64, jnp.float64, **options),)
  weights = interop.to_torch(layers)
  _, found = interop.from_torch(weights)
  for x in weights.values():
    x[...] = 9
  assert worst(found, layers) == 0


def test_a_state_dict_may_be_traced(key):
  layers = stack(gru, key, both=True)
  weights = {k: jnp.asarray(v) for k, v in interop.to_torch(layers).items()}
  found = jax.jit(lambda weights: interop.from_torch(weights)[1])(weights)
  assert worst(found, layers) == 0


def test_torch_modules_with_a_prefix_without_biases_and_in_bfloat16(key):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  torch.manual_seed(0)
  for kind in ("LSTM", "GRU", "RNN"):
    module = make(torch, kind, bias=False, dtype=torch.bfloat16)
    larger = torch.nn.ModuleDict({"a": torch.nn.ModuleList([module])})
    cell, layers = interop.from_torch(larger, prefix="a.0.")
    assert cell is CELLS[kind] and layers[0].w_x.dtype == jnp.bfloat16
    weights = interop.to_torch(layers, bias=False)
    assert set(weights) == set(module.state_dict())
    for name, x in module.state_dict().items():
      assert (weights[name].astype(np.float32) == x.float().numpy()).all()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_cell_of_torch_is_a_layer_by_other_names(kind, key):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  torch.manual_seed(0)
  module = getattr(torch.nn, f"{kind}Cell")(D, H, dtype=torch.float64)
  weights = {f"{name}_l0": w for name, w in module.state_dict().items()}
  cell, (params,) = interop.from_torch(weights)
  assert cell is CELLS[kind]
  x, state = normal_like(
    key, (jnp.zeros((B, D)), cell.initial_state(params, (B,)))
  )
  x_there, *before = (torch.tensor(np.asarray(a)) for a in (x, *state))
  after = module(x_there, tuple(before) if kind == "LSTM" else before[0])
  expected = after if kind == "LSTM" else (after,)
  for found, theirs in zip(cell.step(params, state, x), expected, strict=True):
    assert worst(np.asarray(found), theirs.detach().numpy()) < 1e-10


def test_torch_takes_bfloat16_from_float32_or_a_file(key, tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  load_file = pytest.importorskip("safetensors.torch").load_file
  layers = stack(gru, key, both=False, dtype=jnp.bfloat16)
  interop.save(tmp_path / "weights.safetensors", layers)
  arrays = interop.to_torch(layers)
  with pytest.raises(TypeError, match="bfloat16"):
    torch.tensor(arrays["weight_ih_l0"])
  wide = {k: torch.tensor(v.astype(np.float32)) for k, v in arrays.items()}
  for weights in (wide, load_file(tmp_path / "weights.safetensors")):
    module = make(torch, "GRU", dtype=torch.bfloat16)
    module.load_state_dict(weights)
    assert worst(interop.from_torch(module)[1], layers) == 0


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_torch_modules_that_are_other_networks_are_refused():
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  with pytest.raises(ValueError, match="weight_ih_l0 has no values: it is a "):
    interop.from_torch(make(torch, "LSTM", device="meta"))
  weights = make(torch, "LSTM").state_dict()
  weights["weight_ih_l0"] = torch.quantize_per_tensor(
    weights["weight_ih_l0"], 0.1, 0, torch.qint8
  )
  with pytest.raises(ValueError, match="must hold floats, got a quantised to"):
    interop.from_torch(weights)
  weights["weight_ih_l0"] = torch.ones((4 * H, D), dtype=torch.float8_e5m2)
  with pytest.raises(ValueError, match="weight_ih_l0 cannot be read as an arr"):
    interop.from_torch(weights)
