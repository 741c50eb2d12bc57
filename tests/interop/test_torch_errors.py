"""State_dicts and files of PyTorch: refused, read in part, or written."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gru, lstm, projected_lstm
from lstm_jax.interop import torch as interop
from tests.draws import worst
from tests.interop.torch_layers import Module, stack
from tests.patterns import exact


@pytest.mark.parametrize(
  ("suffix", "missing"),
  [
    ("_l0", "bias_ih_l0"),
    ("_l1", "bias_ih_l1"),
    ("_l0_reverse", "bias_ih_l0_reverse"),
    ("_l1_reverse", "bias_ih_l1_reverse"),
  ],
)
def test_all_layers_and_directions_have_biases_or_none(suffix, missing, key):
  weights = interop.to_torch(stack(lstm, key, both=True))
  for name in (f"bias_ih{suffix}", f"bias_hh{suffix}"):
    del weights[name]
  with pytest.raises(ValueError, match=rf"^{missing} is missing, got "):
    interop.from_torch(weights)


@pytest.mark.parametrize("suffix", ["_l0", "_l1", "_l0_reverse", "_l1_reverse"])
def test_a_missing_input_matrix_is_named(suffix, key):
  weights = interop.to_torch(stack(lstm, key, both=True))
  del weights[f"weight_ih{suffix}"]
  with pytest.raises(ValueError, match=f"^weight_ih{suffix} is missing, got "):
    interop.from_torch(weights)


@pytest.mark.parametrize("cell", [lstm, projected_lstm, gru])
@pytest.mark.parametrize("nonlinearity", ["relu", "gelu"])
def test_a_nonlinearity_of_an_lstm_or_gru_is_refused(cell, nonlinearity, key):
  weights = interop.to_torch(stack(cell, key, both=False))
  message = (
    "^nonlinearity must be None for an nn.LSTM or nn.GRU, "
    f"got '{nonlinearity}'$"
  )
  with pytest.raises(ValueError, match=message):
    interop.from_torch(weights, nonlinearity=nonlinearity)


@pytest.fixture
def with_float8(key, tmp_path):
  """Return (path, layers) of a file with an F8_E4M3 tensor beside an LSTM."""
  save_file = pytest.importorskip("safetensors.numpy").save_file
  layers = stack(lstm, key, both=False)
  arrays = interop.to_torch(layers)
  path = tmp_path / "weights.safetensors"
  save_file({f"rnn.{k}": x.copy() for k, x in arrays.items()}, path)
  # The format: the header's length in 8 bytes, the header as JSON, the data.
  content = path.read_bytes()
  start = 8 + int.from_bytes(content[:8], "little")
  header, data = json.loads(content[8:start]), content[start:]
  header["other"] = {
    "dtype": "F8_E4M3",
    "shape": [4],
    "data_offsets": [len(data), len(data) + 4],
  }
  text = json.dumps(header).encode()
  size = len(text).to_bytes(8, "little")
  path.write_bytes(size + text + data + bytes(4))
  return path, layers


def test_only_the_tensors_with_the_prefix_are_read(with_float8):
  path, layers = with_float8
  cell, found = interop.load(path, prefix="rnn.")
  assert cell is lstm and worst(found, layers) == 0
  with pytest.raises(ValueError, match=r"cannot be read with NumPy: .*float8"):
    interop.load(path, prefix="other")
  with pytest.raises(ValueError, match=r"^prefix must be 'rnn.', got None$"):
    interop.load(path, prefix=None)


def test_a_directory_in_place_of_a_file_is_named(tmp_path):
  pytest.importorskip("safetensors", reason="safetensors is not installed")
  with pytest.raises(IsADirectoryError, match=exact(tmp_path)):
    interop.load(tmp_path)


def test_a_file_that_cannot_be_written_is_named(key, tmp_path):
  pytest.importorskip("safetensors", reason="safetensors is not installed")
  path = tmp_path / "absent" / "weights.safetensors"
  with pytest.raises(OSError, match=f"^{exact(path)} cannot be written: "):
    interop.save(path, stack(lstm, key, both=False))


def test_a_link_is_followed_and_a_file_has_the_usual_permissions(key, tmp_path):
  pytest.importorskip("safetensors", reason="safetensors is not installed")
  layers = stack(lstm, key, both=False)
  usual, path = tmp_path / "usual", tmp_path / "weights.safetensors"
  usual.touch()
  link = tmp_path / "link.safetensors"
  link.symlink_to(path)
  interop.save(link, layers)
  interop.save(link, layers)  # replaces the file
  assert link.is_symlink()
  assert path.stat().st_mode == usual.stat().st_mode
  assert worst(interop.load(path)[1], layers) == 0
  assert len(list(tmp_path.iterdir())) == 3


def test_a_pipe_is_written_to_and_not_replaced(key, tmp_path):
  pytest.importorskip("safetensors", reason="safetensors is not installed")
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  interop.save(pipe, stack(lstm, key, both=False))
  assert pipe.is_fifo()
  assert os.read(reader, 1 << 16)
  os.close(reader)


@pytest.mark.parametrize(
  ("w_h", "found"),
  [(np.ones(24), r"\[G·H, H\], got \[24\]"), (np.ones((0, 0)), r".*\[0, 0\]")],
)
def test_recurrent_weights_of_a_wrong_shape_are_refused(w_h, found, key):
  weights = interop.to_torch(stack(lstm, key, both=False))
  with pytest.raises(ValueError, match=f"^weight_hh_l0 must be {found}$"):
    interop.from_torch(weights | {"weight_hh_l0": w_h})


def test_a_prefix_of_no_module_is_refused(key):
  weights = interop.to_torch(stack(lstm, key, both=False))
  module = Module({f"a.{name}": x for name, x in weights.items()})
  with pytest.raises(ValueError, match=r"^prefix must be 'a\.', got 'b\.c\.'$"):
    interop.from_torch(module, prefix="b.c.")


@pytest.mark.parametrize("cell", [lstm, gru])
def test_bias_false_keeps_the_dtype_and_refuses_a_nonzero_bias(cell, key):
  layers = jax.tree.map(
    lambda w: w if w.ndim > 1 else 0 * w,
    stack(cell, key, both=False, dtype=jnp.float32),
  )
  weights = interop.to_torch(layers, bias=False)
  _, found = interop.from_torch(weights)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(found)}
  assert dtypes == {jnp.dtype(jnp.float32)}
  first = layers[0]
  field = first._fields[-1]  # b, or b_n of a GRU
  bias = getattr(first, field).at[-1].set(0.5)
  layers = (first._replace(**{field: bias}), *layers[1:])
  message = r"^bias_.h_l0 must be 0 with bias=False, got .* of up to 0\.5$"
  with pytest.raises(ValueError, match=message):
    interop.to_torch(layers, bias=False)


def test_none_as_prefix_is_refused(key):
  weights = interop.to_torch(stack(lstm, key, both=False))
  with pytest.raises(ValueError, match=r"^prefix must be '', got None$"):
    interop.from_torch(Module(weights), prefix=None)
  with pytest.raises(ValueError, match=r"^prefix must be a str, got None$"):
    interop.from_torch({"bias": np.zeros(4)}, prefix=None)


def test_a_checkpoint_around_the_state_dict_is_named(key):
  weights = interop.to_torch(stack(lstm, key, both=False))
  message = "^model must be an array of floats, got dict$"
  with pytest.raises(ValueError, match=message):
    interop.from_torch({"model": weights, "epoch": 3})


def test_a_class_in_place_of_a_module_is_refused():
  with pytest.raises(ValueError, match=r"^expected a module.*, got a class$"):
    interop.from_torch(Module)
