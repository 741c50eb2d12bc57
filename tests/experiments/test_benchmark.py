import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from experiments import benchmark
from experiments.benchmarks import plots, timing
from experiments.benchmarks.peers import (
  layers,
  models,
  original,
  samplers,
  sequences,
)
from lstm_jax import lstm

SIZES = {"hidden": 5, "steps": 4, "batch": 3}
MODEL = SIZES | {"layers": 2, "vocabulary": 7}


@pytest.fixture(autouse=True)
def standard_ranks():
  """The other libraries add a bias [K] to an array [..., K]."""
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    yield


def check(rows, names):
  """Every peer that is installed is there, ours first, with its figures."""
  assert [row["peer"] for row in rows][: len(names)] == names
  assert rows[0]["ratio_to_ours"] == 1
  for row in rows:
    low, high = row["quartiles_ms"]
    assert 0 < low <= row["median_ms"] <= high
  assert benchmark.table(rows).row_count == len(rows)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_are_proven_equal_and_timed(dtype):
  ((rows, missing),) = benchmark.model_part([MODEL | {"dtype": dtype}], 2)
  check(rows, ["lstm_jax", "autodiff"])
  assert {"flax linen", "flax nnx"} <= {r["peer"] for r in rows} | set(missing)
  assert rows[0]["compile_s"] > 0 and rows[0]["bytes"] > 0
  assert rows[-1]["peer"] == "products alone"


@pytest.mark.parametrize(
  "cell",
  [
    "lstm",
    pytest.param("gru", marks=pytest.mark.exhaustive),
    pytest.param("rnn", marks=pytest.mark.exhaustive),
  ],
)
def test_layers_are_proven_equal_and_timed(cell):
  outputs, gradients = benchmark.layer_part([SIZES], 2, (cell,))
  for rows, _ in (outputs, gradients):
    check(rows, ["lstm_jax", "autodiff", "flax linen", "flax nnx"])
  assert [outputs[0][0]["backward"], gradients[0][0]["backward"]] == [0, 1]


def test_a_policy_with_resets_is_proven_equal_and_timed():
  outputs, gradients = benchmark.resets_part([SIZES], 2)
  for rows, _ in (outputs, gradients):
    check(rows, ["lstm_jax", "recompute", "autodiff", "flax scan"])


@pytest.mark.exhaustive
def test_sampling_the_original_recipe_and_growth_are_timed(tmp_path):
  cases = [{"hidden": 5, "streams": 2}]
  ((rows, _),) = benchmark.sampling_part(cases, 2, length=3)
  check(rows, ["lstm_jax", "flax linen"])
  assert rows[0]["per_second"] > 0
  ((rows, _),) = benchmark.original_part(1, updates=3)
  check(rows, ["lstm_jax", "lstm_jax, 3 a call", "numpy"])
  growth = list(benchmark.growth_part({"steps": (1, 2)}, 1))
  rows = [row for rows, _ in growth for row in rows]
  assert plots.draw(rows, tmp_path / "picture.png")
  assert (tmp_path / "picture.png").stat().st_size > 1000
  assert not plots.draw([{"part": "memory"}], tmp_path / "none.png")


@pytest.mark.exhaustive
def test_memory_is_what_the_compiled_programs_reserve():
  ((rows, _),) = benchmark.memory_part([SIZES | {"steps": 50}])
  needed = {row["peer"]: row["bytes"] for row in rows}
  assert needed["lstm_jax"] > 0 and needed["autodiff"] > 0
  assert benchmark.table(rows).row_count == len(rows)


@pytest.mark.parametrize("name", ["flax linen", "flax nnx"])
def test_a_peer_that_computes_something_else_is_not_timed(name, monkeypatch):
  make, package = layers.LAYERS[name]

  def wrong(cell, weights):
    return make(cell, weights._replace(b=weights.b + 0.01))

  monkeypatch.setitem(layers.LAYERS, name, (wrong, package))
  with pytest.raises(ValueError, match=f"{name} computes something else"):
    models.jax_peer(name)(models.make_problem(**MODEL))
  for backward in (False, True):
    problem = sequences.make_problem("lstm", backward, **SIZES)
    with pytest.raises(ValueError, match=f"{name} computes something else"):
      sequences.jax_peer(name)(problem)


def test_a_wrong_gradient_alone_is_noticed():
  problem = models.make_problem(**MODEL)
  gradient = problem.gradient._replace(bias=1.01 * problem.gradient.bias)
  with pytest.raises(ValueError, match="array 9 of its results"):
    models.autodiff(problem._replace(gradient=gradient))


def test_a_sampler_that_writes_something_else_is_not_timed():
  problem = samplers.make_problem(5, 2, 3)
  problem = problem._replace(greedy=(problem.greedy + 1) % 65)
  with pytest.raises(ValueError, match="flax linen writes something else"):
    samplers.flax_loop(problem)


def test_the_losses_fall():
  for peer in (
    models.lstm_jax(models.make_problem(**MODEL)),
    original.numpy_program(),
  ):
    losses = [float(peer.run()) for _ in range(50)]
    assert losses[-1] < losses[0] - 0.05


def test_cudnn_is_given_our_weights(key):
  params = lstm.init(key, 4, 5)
  params = params._replace(b=jax.random.normal(key, params.b.shape))
  xs = jax.random.normal(key, (7, 3, 4))
  flat = layers.cudnn_weights(params, second_bias=False)
  unpacked = rnn.unpack_lstm_weights(flat, 4, 5, 1, False)
  zeros = jnp.zeros((1, 3, 5))
  lengths = jnp.full(3, 7, jnp.int32)
  hs, *_ = rnn.lstm_ref(
    xs.swapaxes(0, 1), zeros, zeros, *unpacked, lengths, 4, 5, 1, 0.0, False
  )
  expected = layers.ours("lstm", params).apply(params, xs)
  assert np.allclose(hs.swapaxes(0, 1), expected, atol=1e-6)


def test_what_is_not_there_is_left_out_and_named():
  with_torch = importlib.util.find_spec("torch") is not None
  rows, missing = timing.compare(
    {
      "ours": (original.numpy_program, "numpy"),
      "nobody": (original.numpy_program, "no_such_package"),
    },
    1,
  )
  assert [row["peer"] for row in rows] == ["ours"]
  assert missing == {"nobody": "no_such_package is not installed"}
  assert timing.environment()["versions"]["torch"] or not with_torch


def test_an_earlier_record_is_compared_case_by_case():
  ((old, _),) = benchmark.original_part(1, updates=2)
  new = [row | {"median_ms": 2 * row["median_ms"]} for row in old]
  table = benchmark.changes(old, [*new, {"part": "new", "median_ms": 1.0}])
  assert list(table.columns[3].cells) == ["2.00"] * len(old)
