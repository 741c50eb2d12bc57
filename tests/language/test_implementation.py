"""A language model whose layers are GPU kernels."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, Step, gru, lstm, peephole_lstm
from lstm_jax.language import (
  ModelConfig,
  Regularizers,
  language_model,
  sample,
  stateful_loss,
)
from tests.draws import worst
from tests.interpreting import (
  NEEDS_KERNELS,
  as_if_on_an_h100,
  count_kernels,
  interpreted,
)

V, T, B = 11, 5, 3
SCANS = ModelConfig(embedding_size=4, hidden_size=6, num_layers=2)
KERNELS = dataclasses.replace(SCANS, implementation="mosaic_gpu")
NOISE = Regularizers(
  token_dropout=0.2,
  layer_dropout=0.3,
  output_dropout=0.1,
  weight_drop=0.2,
  ar_coef=0.5,
  tar_coef=0.7,
)


def batch(steps=T):
  tokens = jax.random.randint(jax.random.key(1), (steps + 1, B), 0, V)
  return tokens[:-1], tokens[1:]


def training_loss(config, key, steps=T, noise=NOISE, **options):
  """Return the value and the gradient of the training loss."""
  model = language_model(config, V, regularizers=noise, **options)
  arguments = model.init(key), model.initial_state((B,)), *batch(steps), key
  gradient_of = jax.value_and_grad(model.training_loss, (0, 1), has_aux=True)
  return jax.jit(gradient_of)(*arguments)


@pytest.fixture
def calls(monkeypatch):
  """Return a list of the kernels called: (cell, is reversed, T, plan) of each.

  Scans stand in for the kernels: see `count_kernels`.
  """
  with as_if_on_an_h100(monkeypatch):
    yield count_kernels(monkeypatch)


@pytest.mark.exhaustive
def test_every_layer_is_a_kernel_with_the_same_noise(calls, key):
  expected = training_loss(SCANS, key)
  assert not calls
  # In float32; the stand-ins compute the same products.
  assert worst(training_loss(KERNELS, key), expected) < 1e-6
  assert [(cell, steps) for cell, _, steps, _ in calls] == [(lstm, T)] * 2


@pytest.mark.exhaustive
def test_evaluation_runs_kernels_and_a_single_time_step_scans(calls, key):
  model, other = (language_model(config, V) for config in (KERNELS, SCANS))
  params, tokens = model.init(key), np.arange(3 * V, dtype=np.int32) % V
  loss = stateful_loss(model, params, tokens)
  assert len(calls) == 2
  assert abs(loss - stateful_loss(other, params, tokens)) < 1e-6
  calls.clear()
  training_loss(KERNELS, key, steps=1)
  assert not calls


@pytest.mark.everyday(1)
@pytest.mark.parametrize("size", [1, 67])
def test_kernels_read_64_tokens_of_a_prompt_at_a_time(size, calls, key):
  model, other = (language_model(config, V) for config in (KERNELS, SCANS))
  params, prompt = model.init(key), np.arange(size) % V
  found = sample(model, params, key, prompt, 20, num_samples=B)
  # One for each of the two layers: the loop over parts of 64 tokens is traced
  # even if the prompt has none. The rest is read one by one, by a scan.
  assert [steps for _, _, steps, _ in calls] == [64] * 2
  assert (found == sample(other, params, key, prompt, 20, num_samples=B)).all()


@pytest.mark.everyday(1)
@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
  ("changes", "options", "message"),
  [
    ({}, {"adjoint": Autodiff()}, r"adjoint=Explicit\(\), got Autodiff\(\)"),
    ({}, {"adjoint": Step()}, r"adjoint=Explicit\(\), got Step\(\)"),
    ({}, {"adjoint": Explicit(chunk=2)}, r"adjoint=Explicit\(\), got Explicit"),
    ({}, {"noise": Regularizers(zoneout_h=0.1)}, "no zoneout"),
    ({"cell": peephole_lstm}, {}, "the cells lstm, gru and rnn, got peephole"),
    ({"hidden_size": 193}, {}, "H up to 192 with products in float32, got 193"),
    (
      {"dtype": jnp.float64},
      {},
      "float32 and bfloat16, got params.w_x of float64",
    ),
    (
      {"compute_dtype": jnp.float16},
      {},
      "float32 and bfloat16, got compute_dtype of float16",
    ),
  ],
)
def test_what_the_kernels_do_not_take_is_an_error(
  changes, options, message, key
):
  config = dataclasses.replace(KERNELS, **changes)
  with pytest.raises(
    ValueError, match=f"^implementation='mosaic_gpu' takes {message}"
  ):
    training_loss(config, key, **options)


def test_an_implementation_is_a_known_one_and_makes_a_model_of_its_own():
  message = "^implementation must be one of xla, mosaic_gpu, got 'cuda'$"
  with pytest.raises(ValueError, match=message):
    ModelConfig(implementation="cuda")
  assert ModelConfig().implementation is None
  models = [
    language_model(dataclasses.replace(SCANS, implementation=name), V)
    for name in (None, "xla", "mosaic_gpu")
  ]
  assert len({model.loss for model in models}) == 3


def test_a_cpu_refuses_the_kernels_as_they_are_traced(key):
  with pytest.raises(ValueError, match=r"needs an H100 or H200 .* got a cpu"):
    training_loss(KERNELS, key)
  training_loss(KERNELS, key, steps=1)  # a scan: nothing is refused


@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=str)
def test_the_kernels_have_the_loss_and_gradient_of_the_scans(dtype, key):
  run = partial(training_loss, key=key, steps=3)
  scans, kernels = (
    dataclasses.replace(config, cell=gru, num_layers=1, compute_dtype=dtype)
    for config in (SCANS, KERNELS)
  )
  expected = run(scans)
  with interpreted():
    found = run(kernels)
  # In float32 only the order of sums differs. With bfloat16 operands the
  # products are the same, but the kernels store the gates in 16 bits, for the
  # gradient.
  assert worst(found[0], expected[0]) < 1e-5
  assert worst(found, expected) < (1e-5 if dtype is None else 3e-3)
