"""Peers compute what ours do; those that do not are refused."""

import os
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from experiments.benchmarks import (
  layers,
  models,
  original,
  samplers,
  sequences,
)
from experiments.benchmarks.timing import Unsupported
from lstm_jax import lstm, min_gru
from lstm_jax.interop.cudnn import to_cudnn
from lstm_jax.language import ModelConfig

SIZES = {"hidden_size": 5, "seq_len": 4, "batch_size": 3}
MODEL = SIZES | {"num_layers": 2, "vocabulary_size": 7}


@pytest.fixture(autouse=True)
def standard_ranks():
  """Let other libraries add a bias [K] to an array [..., K], and mix dtypes."""
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    yield


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["flax linen", "flax nnx"])
def test_a_peer_with_another_result_is_refused(name):
  make, _ = layers.LAYERS[name]

  def wrong(cell, weights):
    return make(cell, weights._replace(b=weights.b + 0.01))

  message = f"{name} computes a different result"
  with pytest.raises(ValueError, match=message):
    models.jax_peer(name, wrong)(models.make_problem(**MODEL))
  for backward in (False, True):
    problem = sequences.make_problem("lstm", backward, **SIZES)
    with pytest.raises(ValueError, match=message):
      sequences.jax_peer(name, wrong)(problem)


def test_pytorch_computes_where_jax_does(monkeypatch):
  cuda = SimpleNamespace(is_available=lambda: True)
  monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
  for backend, device in (("cpu", "cpu"), ("gpu", "cuda")):
    monkeypatch.setattr(jax, "default_backend", lambda b=backend: b)
    assert layers.torch_device() == device
  cuda.is_available = lambda: False
  with pytest.raises(Unsupported, match="PyTorch finds no GPU"):
    layers.torch_device()


def test_a_linear_recurrence_is_computed_as_its_name_says(key):
  makers = layers.LINEAR_LAYERS
  assert makers["scan of steps, autodiff"][0] is layers.autodiff
  weights, xs = min_gru.init(key, 5, 5), jnp.ones((4, 3, 5), jnp.float32)
  for name, scans in (("lax.scan", True), ("associative_scan", False)):
    layer = makers[f"{name}, autodiff"][0]("min_gru", weights)
    program = f"{jax.make_jaxpr(layer.apply)(weights, xs)}"
    assert (" scan[" in program) == scans


def test_the_gradient_of_a_layer_is_of_its_weighted_sum():
  layer = layers.Layer(2.0, lambda w, xs: w * xs, None)
  xs, dhs = np.random.default_rng(0).standard_normal((2, 4, 3, 5))
  d_w, dxs = jax.jit(sequences.layer_gradient(layer))(2.0, xs, dhs)
  assert abs(d_w - np.sum(xs * dhs)) < 1e-12
  assert np.array_equal(dxs, 2.0 * dhs)


def test_the_products_of_a_model_are_in_its_dtype(monkeypatch):
  monkeypatch.setattr(models, "our_loss", lambda model: lambda *given: 0.0)
  for dtype, expected in (("float32", None), ("bfloat16", jnp.bfloat16)):
    problem = models.make_problem(**MODEL, dtype=dtype)
    assert problem.config.compute_dtype == expected


@pytest.mark.exhaustive
def test_a_peer_with_one_wrong_gradient_is_refused():
  problem = models.make_problem(**MODEL)
  gradient = problem.gradient._replace(bias=1.01 * problem.gradient.bias)
  with pytest.raises(ValueError, match=r"array \[1\].bias has a relative err"):
    models.autodiff(problem._replace(gradient=gradient))


def test_a_library_of_jax_has_a_peer_for_several_devices(monkeypatch):
  one = models.models()
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  two = models.models()
  shared = {
    name.removesuffix(", 2 devices") for name in two.keys() - one.keys()
  }
  assert shared == one.keys() - {"pytorch", "products alone"}
  make, _ = two["flax linen, 2 devices"]
  with pytest.raises(Unsupported, match="2 devices do not divide the batch"):
    make(models.make_problem(**MODEL))


def products_of(config, vocabulary_size):
  tokens = np.zeros((4, 3), np.int32)  # T, B
  given = config, vocabulary_size, None, tokens, tokens, 0.0, None
  models.products_alone(models.Problem(*given))


@pytest.mark.parametrize(
  ("vocabulary_size", "rows"), [(7, 7), (11, 11), (13, 12)]
)
def test_the_products_have_the_rows_that_our_model_multiplies(
  vocabulary_size, rows, monkeypatch
):
  shapes = []

  def compile_program(products, arguments):
    shapes.extend(a.shape for a in jax.tree.leaves(arguments["embedding"]))
    results = jax.eval_shape(products, arguments)
    shapes.extend(result.shape for result in results[4:6])
    return products, 0.0, 0

  monkeypatch.setattr(models, "compile_program", compile_program)
  # All V rows of the embedding are multiplied, or one row for each of the 12
  # tokens of the batch, if these are fewer.
  products_of(ModelConfig(embedding_size=2, hidden_size=5), vocabulary_size)
  assert shapes == [(rows, 2), (2, 20), (rows, 2), (2, 20)]


def test_the_products_are_those_of_every_layer_in_its_dtype(monkeypatch):
  found = []

  def compile_program(products, arguments):
    found.append(len(jax.eval_shape(products, arguments)))
    found.append({a.dtype for a in jax.tree.leaves(arguments)})
    return products, 0.0, 0

  monkeypatch.setattr(models, "compile_program", compile_program)
  dtype = jnp.dtype("bfloat16")
  config = ModelConfig(hidden_size=5, num_layers=2, compute_dtype=dtype)
  products_of(config, 7)
  # Six of embedding and readout, three of the inputs of the second layer, and
  # three of the recurrence of each.
  assert found == [6 + 3 + 2 * 3, {dtype}]


@pytest.mark.exhaustive
def test_our_layer_is_a_peer_in_the_libraries_model():
  problem = models.make_problem(**MODEL)
  make, _ = models.models()["lstm_jax layer"]
  other = models.jax_peer("lstm_jax", layers.ours)
  assert make(problem).bytes == other(problem).bytes
  wrong = problem._replace(loss=1.01 * problem.loss)
  message = "lstm_jax layer computes a different result"
  with pytest.raises(ValueError, match=message):
    make(wrong)


def test_a_sampler_with_other_samples_is_refused():
  problem = samplers.make_problem(5, 2, 3)  # H, samples, their length
  with pytest.raises(ValueError, match=r"flax linen .* place 1 of sample 0"):
    samplers.flax_loop(with_other_samples(problem))


def with_other_samples(problem):
  others = problem.greedy_samples.copy()
  others[:, 1] = (others[:, 1] + 1) % samplers.VOCABULARY_SIZE
  return problem._replace(greedy_samples=others)


def test_a_sampler_of_one_text_in_place_of_two_is_refused():
  one = samplers.make_problem(5, 2, 3)._replace(num_samples=1)
  message = r"flax linen must write samples \(2, \d+\), got \(1, "
  with pytest.raises(ValueError, match=message):
    samplers.flax_loop(one)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", samplers.samplers())
def test_a_timed_sampler_draws_all_of_its_samples_at_random(name):
  make, package = samplers.samplers()[name]
  pytest.importorskip(package)
  problem = samplers.make_problem(5, 2, 3)
  found = np.asarray(make(problem).run())
  assert found.shape == (2, 3)
  assert (found != problem.greedy_samples[:, :3]).any(axis=1).all()
  assert (found[0] != found[1]).any()


def test_onnxruntime_with_other_samples_is_refused():
  pytest.importorskip("onnxruntime")
  problem = samplers.make_problem(5, 2, 3)
  with pytest.raises(ValueError, match=r"onnxruntime .* place 1 of sample 0"):
    samplers.onnxruntime_loop(with_other_samples(problem))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["lstm_jax", "pytorch"])
def test_the_loss_of_a_model_falls(name):
  make, package = models.models()[name]
  pytest.importorskip(package)
  peer = make(models.make_problem(**MODEL))
  losses = [peer.run() for _ in range(50)]
  assert losses[-1] < losses[0] - 0.05


@pytest.mark.exhaustive
def test_both_original_programs_take_the_same_training_steps():
  """One is an LSTM in NumPy, the other our training step, compiled."""
  compiled, numpy = original.compiled_program(3)(), original.numpy_program()
  found = np.concatenate([compiled.run(), compiled.run()])
  expected = [numpy.run() for _ in range(6)]
  assert np.abs(found - expected).max() < 5e-6  # some roundings of 4 nats
  assert expected[-1] < expected[0] - 1


@pytest.mark.exhaustive
def test_cudnn_receives_our_weights(key):
  params = lstm.init(key, 4, 5)
  params = params._replace(b=jax.random.normal(key, params.b.shape))
  xs = jax.random.normal(key, (7, 3, 4))
  flat = to_cudnn((params,))
  unpacked = rnn.unpack_lstm_weights(flat, 4, 5, 1, False)
  zeros = jnp.zeros((1, 3, 5))
  lengths = jnp.full(3, 7, jnp.int32)
  hs, *_ = rnn.lstm_ref(
    xs.swapaxes(0, 1), zeros, zeros, *unpacked, lengths, 4, 5, 1, 0.0, False
  )
  expected = layers.ours("lstm", params).apply(params, xs)
  assert np.allclose(hs.swapaxes(0, 1), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["lstm_jax", "recompute", "autodiff"])
def test_a_policy_forgets_where_an_episode_begins(name):
  problem = sequences.make_problem("gru", True, 5, 4, 3, resets=True)
  make, _ = sequences.reset_peers()[name]
  other = problem._replace(starts=~problem.starts)
  with pytest.raises(ValueError, match=f"{name} computes a different result"):
    make(other)
  assert make(problem).bytes > 0
  starts = sequences.make_problem("gru", False, 1, 1000, 32, True).starts
  assert abs(np.asarray(starts).mean() - 1 / 32) < 0.002


@pytest.mark.exhaustive
def test_a_peer_has_the_adjoint_of_its_name(key):
  """The compiled programs keep different amounts for the backward."""
  problem = sequences.make_problem("lstm", True, 32, 50, 8)
  kept = {
    name: make(problem).bytes
    for name, (make, _) in sequences.jax_peers().items()
    if name in ("lstm_jax", "autodiff")
  }
  assert kept["lstm_jax"] < kept["autodiff"]
  model = models.make_problem(**MODEL | {"seq_len": 50})
  kept = [make(model).bytes for make in (models.lstm_jax, models.autodiff)]
  assert kept[0] < kept[1]


def torch_peak(sizes):
  """Stand for the peak of PyTorch, in a process of its own."""
  error, *given = sizes["hidden_size"], "libtorch.so: no such file"
  if error is os.abort:
    os.abort()
  if error:
    raise error(*given)
  return 700


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("error", "why"),
  [(None, None), (ImportError, "libtorch.so"), (os.abort, "terminated")],
)
def test_pytorch_that_is_broken_or_killed_has_no_memory(
  error, why, monkeypatch
):
  monkeypatch.setattr(sequences, "is_installed", lambda package: True)
  monkeypatch.setattr(sequences, "make_problem", lambda *_, **sizes: None)
  monkeypatch.setattr(sequences, "jax_peers", dict)
  monkeypatch.setattr(sequences, "torch_peak", torch_peak)
  rows, skipped = sequences.measure_memory({"hidden_size": error})
  if why:
    assert rows == [] and why in skipped["pytorch"]
  else:
    assert (rows, skipped) == ([{"peer": "pytorch", "bytes": 700}], {})


@pytest.mark.exhaustive
def test_the_peak_of_pytorch_grows_with_its_sequence():
  pytest.importorskip("torch")
  small, large = (
    sequences.torch_peak({"hidden_size": 64, "batch_size": 64, "seq_len": n})
    for n in (200, 800)
  )
  assert 0 < 2 * small < large


@pytest.mark.exhaustive
@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_of_pytorch_has_its_dtype_and_precision(backward, monkeypatch):
  torch = pytest.importorskip("torch")
  problem = sequences.make_problem("gru", backward, 4, 3, 2)
  for dtype, tf32, allowed in (
    ("float32", True, 1e-4),
    ("float32", False, 1e-4),
    ("bfloat16", False, 5e-2),
  ):
    peer = sequences.pytorch(problem, "pytorch", dtype, tf32, allowed)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    first, *weights = peer.run()
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert len(weights) == 4 * backward and first.shape == (3, 2, 4)
    assert first.dtype == getattr(torch, dtype) and not first.requires_grad
  with pytest.raises(ValueError, match="other computes a different result"):
    sequences.pytorch(problem, "other", "bfloat16", allowed=1e-4)
