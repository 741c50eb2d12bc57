"""A language model as one ONNX file, in onnxruntime and ONNX's evaluator."""

import importlib.metadata
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import (
  coupled_lstm,
  gru,
  gru_reset_before,
  layernorm_lstm,
  lstm,
  min_gru,
  peephole_lstm,
  rnn,
)
from lstm_jax.cells import RELU, make_hard_sigmoid
from lstm_jax.interop.onnx import language_model_to_onnx, load
from lstm_jax.language import CharTokenizer, ModelConfig, language_model
from tests.draws import normal_like, worst
from tests.interop import onnx_models
from tests.interop.onnx_models import onnx

E, H, V = 6, 5, 11
SYMBOLS = "\n '\"\\aé–😀\x00\ud800"  # V of them, one that UTF-8 cannot hold
CELLS = pytest.mark.parametrize(
  "cell",
  [
    lstm,
    pytest.param(gru, marks=pytest.mark.exhaustive),
    pytest.param(rnn, marks=pytest.mark.exhaustive),
    pytest.param(peephole_lstm, marks=pytest.mark.exhaustive),
    pytest.param(coupled_lstm, marks=pytest.mark.exhaustive),
    pytest.param(gru_reset_before, marks=pytest.mark.exhaustive),
  ],
  ids=lambda cell: cell.__name__.rpartition(".")[2],
)
# Runs a model one token at a time and in one piece, without JAX.
PROGRAM = """
import sys
import numpy as np, onnxruntime

path, text, found = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
names = [x.name for x in session.get_outputs()]
arrays = dict(np.load(text))
tokens = arrays.pop("tokens")
whole = dict(zip(names, session.run(names, {"tokens": tokens, **arrays})))
state, steps = arrays, []
for row in tokens:
  logits, *after = session.run(names, {"tokens": row[None], **state})
  steps.append(logits)
  state = {k.removesuffix("_next"): x for k, x in zip(names[1:], after)}
ended = {f"{k}_stepped": x for k, x in state.items()}
np.savez(found, stepped=np.concatenate(steps), **whole, **ended)
assert not {"jax", "lstm_jax", "onnx"} & set(sys.modules)
"""


def make(cell, key, dtype, tied, layers=2):
  config = ModelConfig(
    cell,
    embedding_size=H if tied else E,
    hidden_size=H,
    num_layers=layers,
    tied=tied,
    dtype=dtype,
  )
  model = language_model(config, V)
  params = normal_like(key, jax.eval_shape(model.init, key))
  # Weights so small that rounding errors do not grow over time.
  return model, jax.tree.map(lambda x: x / 4, params)


def named(state):
  """Return a state as {name of a file's input: array}."""
  return {
    f"{field}_{k}": np.asarray(leaf)
    for k, layer in enumerate(state)
    for field, leaf in layer._asdict().items()
  }


def draw(model, key, steps, batch):
  state = normal_like(key, model.initial_state((batch,)))
  tokens = jax.random.randint(key, (steps, batch), 0, V)
  return state, np.asarray(tokens, np.int64)


@CELLS
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_evaluator_of_onnx_computes_a_language_model(cell, tied, key):
  """In float64; one file for every T and B."""
  model, params = make(cell, key, jnp.float64, tied)
  file = language_model_to_onnx(cell, params)
  for steps, batch in ((7, 2), (1, 3)):
    state, tokens = draw(model, key, steps, batch)
    inputs = {"tokens": tokens, **named(state)}
    found = onnx_models.run_reference(file, inputs)
    state, logits = model.apply(params, state, tokens)
    expected = {"logits": np.asarray(logits)}
    expected |= {f"{k}_next": x for k, x in named(state).items()}
    assert list(found) == list(expected)
    assert worst(found, expected) < 1e-12


@CELLS
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_onnxruntime_runs_a_language_model_without_this_library(
  cell, tied, key, tmp_path
):
  """1,000 tokens in one call, and one by one with the state fed back.

  In float32, a time step rounds by 6e-8; the weights are small, so that the
  state forgets these errors. A logit is a sum of H products, mostly below 1.
  """
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
  model, params = make(cell, key, jnp.float32, tied)
  onnx.save(language_model_to_onnx(cell, params), tmp_path / "model.onnx")
  state, tokens = draw(model, key, 1000, 2)
  np.savez(tmp_path / "text.npz", tokens=tokens, **named(state))
  paths = [tmp_path / name for name in ("model.onnx", "text.npz", "out.npz")]
  subprocess.run(
    [sys.executable, "-I", "-c", PROGRAM, *map(str, paths)], check=True
  )
  found = dict(np.load(paths[-1]))
  state, logits = model.apply(params, state, tokens)
  logits = np.asarray(logits)
  assert np.abs(logits).max() > 0.1
  assert worst(found["logits"], logits) < 1e-5
  assert worst(found["stepped"], logits) < 1e-5
  for name, leaf in named(state).items():
    assert worst(found[f"{name}_next"], leaf) < 1e-5
    assert worst(found[f"{name}_stepped"], leaf) < 1e-5


@pytest.mark.exhaustive
def test_onnxruntime_runs_a_language_model_of_other_activations(key):
  onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed"
  )
  cell = lstm.with_activations(make_hard_sigmoid(0.3), RELU)
  model, params = make(cell, key, jnp.float32, tied=False, layers=1)
  file = language_model_to_onnx(cell, params)
  state, tokens = draw(model, key, 7, 2)
  inputs = {"tokens": tokens, **named(state)}
  found = onnx_models.run_onnxruntime(onnxruntime, file, inputs)
  after, logits = model.apply(params, state, tokens)
  expected = {"logits": np.asarray(logits)}
  expected |= {f"{k}_next": x for k, x in named(after).items()}
  assert worst(found, expected) < 1e-5
  standard = language_model(ModelConfig(lstm, E, H), V)
  _, others = standard.apply(params, state, tokens)
  assert worst(others, logits) > 1e-3


def test_a_file_has_readable_names_and_its_vocabulary(key, tmp_path):
  _, params = make(lstm, key, jnp.float32, tied=False)
  tokenizer = CharTokenizer.from_text(SYMBOLS)
  path = tmp_path / "model.onnx"
  onnx.save(language_model_to_onnx(lstm, params, tokenizer), path)
  file = onnx.load(path)
  states = ["h_0", "c_0", "h_1", "c_1"]
  assert [x.name for x in file.graph.input] == ["tokens", *states]
  outputs = [x.name for x in file.graph.output]
  assert outputs == ["logits", *(f"{name}_next" for name in states)]
  axes = [
    x.dim_param or x.dim_value
    for x in file.graph.output[0].type.tensor_type.shape.dim
  ]
  assert axes == ["T", "B", V]
  assert file.ir_version == 8  # which programs of 2022 read
  assert [(x.domain, x.version) for x in file.opset_import] == [("", 17)]
  assert file.producer_name == "lstm_jax"
  assert file.producer_version == lstm_jax.__version__
  metadata = {x.key: x.value for x in file.metadata_props}
  assert metadata["producer"] == f"lstm_jax {lstm_jax.__version__}"
  assert metadata["unit"] == "character" and metadata["cell"] == "lstm"
  assert "".join(json.loads(metadata["symbols"])) == tokenizer.symbols
  layers = load(path)
  assert list(layers) == ["layer_0", "layer_1"]
  found = tuple(layer.params for layer in layers.values())
  assert worst(found, params.layers) == 0


def test_a_model_is_written_where_the_package_is_not_installed(
  key, monkeypatch
):
  def from_name(name):  # as if only PYTHONPATH led to the package
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata.Distribution, "from_name", from_name)
  _, params = make(lstm, key, jnp.float32, tied=True, layers=1)
  file = language_model_to_onnx(lstm, params)
  assert file.producer_version == ""
  metadata = {entry.key: entry.value for entry in file.metadata_props}
  assert metadata["producer"] == "lstm_jax"


def test_the_vocabulary_is_in_the_order_and_unit_of_the_tokenizer(key):
  _, params = make(lstm, key, jnp.float32, tied=True, layers=1)
  words = [f"word {k}" for k in reversed(range(V))]
  tokenizer = SimpleNamespace(size=V, unit="word", symbols=words)
  for given, more in (
    (tokenizer, {"unit": "word", "symbols": json.dumps(words)}),
    (None, {}),
  ):
    file = language_model_to_onnx(lstm, params, given)
    metadata = {x.key: x.value for x in file.metadata_props}
    producer = f"lstm_jax {lstm_jax.__version__}"
    assert metadata == {"producer": producer, "cell": "lstm", **more}


def test_a_model_that_onnx_cannot_hold_is_refused(key):
  _, params = make(lstm, key, jnp.float32, tied=False)
  known = (
    "layernorm_lstm, only for lstm, peephole_lstm, coupled_lstm, gru, "
    "gru_reset_before, rnn"
  )

  def refused(match, params, cell=lstm, tokenizer=None):
    with pytest.raises(ValueError, match=match):
      language_model_to_onnx(cell, params, tokenizer)

  refused(f"no operator for the cell {known}", params, layernorm_lstm)
  refused("params must be GRUParams, got LSTMParams", params, gru)
  _, others = make(min_gru, key, jnp.float32, tied=False)
  refused("params must be LSTMParams, got MinGRUParams", others)
  bfloat16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  refused("must be float32 or float64, got bfloat16", bfloat16)
  integers = jax.tree.map(lambda x: x.astype(jnp.int32), params)
  refused("params must be float32 or float64, got int32", integers)
  layer = params.layers[0]
  refused("params must be LanguageParams, got LSTMParams", layer)
  refused("layers must have at least one layer", params._replace(layers=()))
  refused("layers must be a list or tuple", params._replace(layers=None))
  refused("tokenizer must be a Tokenizer or None, got str", params, lstm, "x")
  many = 10**8  # symbols; one number stands for all, without memory
  large = params._replace(
    embedding=np.broadcast_to(np.float32(0), (many, E)),
    readout=np.broadcast_to(np.float32(0), (H, many)),
    bias=np.broadcast_to(np.float32(0), (many,)),
  )
  refused(r"at most [\d,]+ bytes, .* 2 GiB, got 4,800,", large)
  for field, shape, given in (
    ("bias", r"\[any\]", params.bias[:, None]),
    ("bias", r"\[any\]", params.bias[0]),
    ("embedding", r"\[any, any\]", params.embedding[0]),
  ):
    found = re.escape(f"{given.shape}")
    changed = params._replace(**{field: given})
    refused(f"^params.{field} must be {shape}, got {found}$", changed)
  refused(
    r"params\.embedding must be float32, as params.bias, got float64",
    params._replace(embedding=params.embedding.astype(jnp.float64)),
  )
  refused(
    r"layers\[0\]\.w_x must be \[3, any\], got \(6, 20\)",
    params._replace(embedding=params.embedding[:, :3]),
  )
  for field, shape in (("w_x", r"\[6, any\]"), ("w_h", r"\[any, any\]")):
    scalar = layer._replace(**{field: jnp.float32(1)})
    refused(
      rf"layers\[0\]\.{field} must be {shape}, got \(\)$",
      params._replace(layers=(scalar, *params.layers[1:])),
    )
  refused(
    r"readout must be \[5, 11\], got \(3, 11\)",
    params._replace(readout=params.readout[:3]),
  )
  refused(
    r"embedding must be \[11, 5\], got \(11, 6\)",
    params._replace(readout=None),
  )
  refused(
    "tokenizer must have 11 symbols, as params.bias, got 3",
    params,
    tokenizer=CharTokenizer("abc"),
  )
