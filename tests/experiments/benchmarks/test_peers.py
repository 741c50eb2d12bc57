"""Peers compute what ours do; those that do not are refused."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from experiments.benchmarks import (
  layers,
  linear,
  models,
  original,
  products,
  resets,
  samplers,
  sequences,
  torch_layer,
)
from experiments.benchmarks.proof import (
  Unsupported,
  check_same,
  compile_program,
  tolerance,
)
from lstm_jax import Autodiff, Explicit, lstm, min_gru
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


def test_results_are_compared_by_the_norm_of_each_array():
  a = np.full(4, 100.0)
  check_same("peer", [a + 0.5, 0 * a], [a, 0 * a], 0.01)
  for wrong, message in (
    (a + 2.0, r"peer computes a different result: array 1 .* error of 2.0e-02"),
    (a * np.nan, "array 1 has a relative error of nan"),
    (a[:1], r"array 1 has shape \(1,\), not \(4,\)"),
  ):
    with pytest.raises(ValueError, match=message):
      check_same("peer", [a, wrong], [a, a], 0.01)
  assert tolerance() == 1e-4  # on a CPU


def test_pytorch_computes_where_jax_does(monkeypatch):
  cuda = SimpleNamespace(is_available=lambda: True)
  monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
  for backend, device in (("cpu", "cpu"), ("gpu", "cuda")):
    monkeypatch.setattr(jax, "default_backend", lambda b=backend: b)
    assert torch_layer.torch_device() == device
  cuda.is_available = lambda: False
  with pytest.raises(Unsupported, match="PyTorch finds no GPU"):
    torch_layer.torch_device()


def test_the_memory_of_a_donated_argument_is_counted_once():
  x = jnp.ones(10_000, jnp.float32)  # 40,000 bytes, and as many for the result
  for donate, size in (((), 80_000), ((0,), 40_000)):
    program, seconds, found = compile_program(jnp.sin, x, donate=donate)
    assert size <= found < size + 10_000 and seconds > 0
  assert program(x).shape == x.shape and x.is_deleted()


def test_a_peer_has_the_adjoint_of_its_name(monkeypatch):
  monkeypatch.setattr(
    models, "language_model", lambda config, size, adjoint: adjoint
  )
  monkeypatch.setattr(models, "our_loss", lambda model: model)
  monkeypatch.setattr(models, "_make_peer", lambda name, loss, *_: (name, loss))
  problem = models.Problem("config", 7, *[None] * 5)
  assert models.lstm_jax(problem) == ("lstm_jax", Explicit())
  assert models.autodiff(problem) == ("autodiff", Autodiff())

  def ours(cell, weights, adjoint=None, reset=None):
    return cell, weights, adjoint, reset

  monkeypatch.setattr(layers, "ours", ours)
  found = layers.autodiff("rnn", "weights")
  assert found == ("rnn", "weights", Autodiff(), None)
  monkeypatch.setattr(resets, "ours", ours)
  monkeypatch.setattr(resets.sequences, "make_peer", lambda *given: given)
  sequence = SimpleNamespace(weights="weights")
  problem = resets.Problem(sequence, "starts")
  for name, adjoint in (
    ("lstm_jax", Explicit()),
    ("recompute", Explicit(residuals="recompute")),
    ("autodiff", Autodiff()),
  ):
    make, _ = resets.reset_peers()[name]
    layer = "gru", "weights", adjoint, "starts"
    assert make(problem) == (name, layer, sequence)


def test_a_linear_recurrence_is_computed_as_its_name_says(key):
  assert linear.LAYERS["scan of steps, autodiff"] is layers.autodiff
  weights, xs = min_gru.init(key, 5, 5), jnp.ones((4, 3, 5), jnp.float32)
  for name, scans in (("lax.scan", True), ("associative_scan", False)):
    layer = linear.LAYERS[f"{name}, autodiff"]("min_gru", weights)
    program = f"{jax.make_jaxpr(layer.apply)(weights, xs)}"
    assert (" scan[" in program) == scans


def test_the_gradient_of_a_layer_is_of_its_weighted_sum():
  layer = layers.Layer(2.0, lambda w, xs: w * xs, None)
  xs, dhs = np.random.default_rng(0).standard_normal((2, 4, 3, 5))
  d_w, dxs = jax.jit(sequences.layer_gradient(layer))(2.0, xs, dhs)
  assert abs(d_w - np.sum(xs * dhs)) < 1e-12
  assert np.array_equal(dxs, 2.0 * dhs)


def test_an_episode_has_32_steps_on_average():
  starts = resets.draw_starts(np.random.default_rng(0), 1000, 32)
  assert abs(np.asarray(starts).mean() - 1 / 32) < 0.002


def test_the_products_of_a_model_are_in_its_dtype(monkeypatch):
  monkeypatch.setattr(models, "our_loss", lambda model: lambda *given: 0.0)
  for dtype, expected in (("float32", None), ("bfloat16", jnp.bfloat16)):
    problem = models.make_problem(**MODEL, dtype=dtype)
    assert problem.config.compute_dtype == expected


@pytest.mark.exhaustive
def test_a_peer_with_one_wrong_gradient_is_refused():
  problem = models.make_problem(**MODEL)
  gradient = problem.gradient._replace(bias=1.01 * problem.gradient.bias)
  # The bias is the last array, after the loss, the embedding, three arrays for
  # each of two layers, and the readout.
  with pytest.raises(ValueError, match="array 9 has a relative error of"):
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
    return None, 0.0, 0

  monkeypatch.setattr(products, "compile_program", compile_program)
  config = ModelConfig(embedding_size=2, hidden_size=5)
  # T 4 and B 3. All V rows of the embedding are multiplied, or one row for each
  # of the 12 tokens of the batch, if these are fewer.
  products.make_products(config, vocabulary_size, 4, 3)
  assert shapes == [(rows, 2), (2, 20), (rows, 2), (2, 20)]


def test_the_products_are_those_of_every_layer_in_its_dtype(monkeypatch):
  found = []

  def compile_program(products, arguments):
    found.append(len(jax.eval_shape(products, arguments)))
    found.append({a.dtype for a in jax.tree.leaves(arguments)})
    return None, 0.0, 0

  monkeypatch.setattr(products, "compile_program", compile_program)
  dtype = jnp.dtype("bfloat16")
  config = ModelConfig(hidden_size=5, num_layers=2, compute_dtype=dtype)
  products.make_products(config, 7, 4, 3)
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
