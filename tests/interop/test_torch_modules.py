"""Weights of PyTorch's modules, and of stand-ins for modules and tensors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, rnn
from lstm_jax.interop import torch as interop
from tests.draws import B, D, H, normal_like, worst
from tests.interop.torch_layers import (
  ALL_CELLS,
  CELLS,
  Module,
  Tensor,
  make,
  nonlinearity_of,
  stack,
  tensors,
)


@ALL_CELLS
def test_a_module_is_read_as_its_state_dict(kind, key):
  layers = stack(CELLS[kind], key, both=True)
  options = (
    {"nonlinearity": nonlinearity_of(kind)} if nonlinearity_of(kind) else {}
  )
  cell, same = interop.from_torch(Module(tensors(layers), **options))
  assert cell is CELLS[kind] and worst(same, layers) == 0


def test_what_is_no_module_and_no_state_dict_is_refused():
  with pytest.raises(ValueError, match="a module or a state_dict, got list"):
    interop.from_torch([1])
  with pytest.raises(ValueError, match="must be str, got 0"):
    interop.from_torch({0: np.ones(3)})


def test_the_nonlinearity_of_an_rnn_is_read_or_asked_for(key):
  weights = tensors(stack(rnn, key, both=False))
  with pytest.raises(ValueError, match="does not say its nonlinearity: pass "):
    interop.from_torch(weights)
  for given in ("gelu", "", ["tanh"]):
    message = f"nonlinearity must be tanh or relu, got {given!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
      interop.from_torch(weights, nonlinearity=given)
  module = Module(weights, nonlinearity="relu")
  message = "nonlinearity must be relu, the module's, got tanh"
  larger = Module({f"a.0.{k}": v for k, v in weights.items()})
  larger.a = Module({})
  setattr(larger.a, "0", module)  # as in an nn.Sequential
  for source, prefix in ((module, ""), (larger, "a.0.")):
    for given in (None, "relu"):
      cell, _ = interop.from_torch(source, prefix=prefix, nonlinearity=given)
      assert cell is CELLS["RNN relu"]
    with pytest.raises(ValueError, match=message):
      interop.from_torch(source, prefix=prefix, nonlinearity="tanh")


@ALL_CELLS
def test_bfloat16_tensors_keep_dtype_and_values(kind, key, tmp_path):
  layers = stack(CELLS[kind], key, both=False, dtype=jnp.bfloat16)
  of_floats = {
    name: Tensor(x.astype(np.float32), "torch.bfloat16")
    for name, x in interop.to_torch(layers).items()
  }
  interop.save(tmp_path / "weights.safetensors", layers)
  for _, found in (
    interop.from_torch(of_floats, nonlinearity=nonlinearity_of(kind)),
    interop.from_torch(
      interop.to_torch(layers), nonlinearity=nonlinearity_of(kind)
    ),
    interop.load(
      tmp_path / "weights.safetensors", nonlinearity=nonlinearity_of(kind)
    ),
  ):
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(found))
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


@pytest.mark.everyday(1)
@pytest.mark.parametrize("kind", ["GRU", "projected"])
def test_later_changes_of_the_tensors_do_not_reach_the_params(kind, key):
  """The transpose of a matrix with one row or column is contiguous.

  So the params could share the tensor's memory. D is 1, and so is the size of
  the projection.
  """
  cell = CELLS[kind]
  options = {"projection_size": 1} if kind == "projected" else {}
  layers = (cell.init(key, 1, 64, jnp.float64, **options),)
  weights = interop.to_torch(layers)
  _, found = interop.from_torch(weights)
  for x in weights.values():
    x[...] = 9
  assert worst(found, layers) == 0


def test_modules_without_biases_in_bfloat16_are_read_by_prefix(key):
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
def test_a_cell_of_torch_is_read_if_l0_is_added_to_its_names(kind, key):
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
    assert worst(np.asarray(found), theirs.detach().numpy()) < 1e-12


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
def test_tensors_of_torch_without_readable_values_are_refused():
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  with pytest.raises(ValueError, match="weight_ih_l0 has no values: it is a "):
    interop.from_torch(make(torch, "LSTM", device="meta"))
  weights = make(torch, "LSTM").state_dict()
  weights["weight_ih_l0"] = torch.quantize_per_tensor(
    weights["weight_ih_l0"], 0.1, 0, torch.qint8
  )
  with pytest.raises(ValueError, match="must hold floats, got a quantised "):
    interop.from_torch(weights)
  # `numpy` raises a RuntimeError for the second, as for a DTensor of FSDP.
  for tensor in (
    torch.ones((4 * H, D), dtype=torch.float8_e5m2),
    torch.ones((4 * H, D), dtype=torch.complex64).conj().imag,
  ):
    weights["weight_ih_l0"] = tensor
    with pytest.raises(ValueError, match="weight_ih_l0 cannot be read as an "):
      interop.from_torch(weights)
