"""Language models compiled for an H100, on a machine without one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.launches import compile_for_h100
from lstm_jax.language import ModelConfig, Regularizers, language_model
from lstm_jax.language.drawing import DrawingRules
from lstm_jax.language.evaluate import predict
from lstm_jax.language.sampling import _sample, filled
from lstm_jax.sequence.linear import is_linear
from lstm_jax.training import (
  OptimizerConfig,
  init_state,
  make_optimizer,
  make_train_step,
)
from tests.contract import TABLE
from tests.interpreting import NEEDS_CUDA, NEEDS_KERNELS

pytestmark = [pytest.mark.exhaustive, NEEDS_CUDA]
# On a GPU an iteration of a loop has up to four time steps. T is enough for
# several iterations, since a single one is compiled without a loop.
V, E, T, B = 20, 16, 13, 8
FUSED = "lstm", "gru", "rnn"
CASES = [
  *(
    pytest.param((name, layers, "mosaic_gpu"), marks=NEEDS_KERNELS)
    for name in FUSED
    for layers in (1, 2)
  ),
  *((name, 1, None) for name in TABLE),
]
NOISE = {"layer_dropout": 0.1, "output_dropout": 0.1}
WITHOUT_LOOP = {name for name, row in TABLE.items() if is_linear(row.cell)}


@pytest.fixture(autouse=True, scope="module")
def kernels_kept(tmp_path_factory):
  """Have XLA compile a kernel, such as one of Adam's, once for all programs.

  XLA keeps the kernels in one file, which two processes must not write at the
  same time: each worker of pytest has its own.
  """
  kept = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("kernels")),
    "jax_persistent_cache_enable_xla_caches": "xla_gpu_kernel_cache_file",
  }
  before = {name: getattr(jax.config, name) for name in kept}
  # This opens JAX's cache of programs, which stays where it is once it is open:
  # only XLA's kernels are to be kept in the new directory.
  jax.jit(abs)(1.0)
  for name, value in kept.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True)
def as_a_user():
  """JAX as in a user's program: without the stricter defaults of the tests."""
  with (
    jax.enable_x64(False),
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
    jax.default_matmul_precision(None),
  ):
    yield


@pytest.fixture(params=CASES, ids=str)
def case(request):
  """Return (model, shapes of its weights, kernels, loops).

  The last two are counts for a forward pass. There is one kernel for each layer
  or none. There is one loop over time, but none with kernels or for a linear
  recurrence.
  """
  name, layers, implementation = request.param
  config = ModelConfig(
    cell=TABLE[name].cell,
    embedding_size=E,
    hidden_size=128,
    num_layers=layers,
    compute_dtype=jnp.bfloat16,
    implementation=implementation,
  )
  loops = 0 if implementation or name in WITHOUT_LOOP else 1
  weight_drop = 0.0 if name in WITHOUT_LOOP else 0.2  # those have no W_h
  noise = Regularizers(weight_drop=weight_drop, **NOISE)
  model = language_model(config, V, regularizers=noise)
  params = jax.eval_shape(model.init, jax.random.key(0))
  return model, params, layers if implementation else 0, loops


def kernels_and_loops(f, *arguments):
  """Return how many kernels, and how many loops, f has on an H100."""
  program, thunks = compile_for_h100(f, *arguments)
  kernels = program.as_text().count('custom_call_target="mosaic_gpu')
  return kernels, thunks.count("kWhile")


def test_a_training_step_has_two_kernels_a_layer_or_two_loops(case):
  model, params, kernels, loops = case
  optimizer = make_optimizer(OptimizerConfig(), num_steps=10)
  state = jax.eval_shape(lambda p: init_state(model, optimizer, p, B), params)
  tokens = jax.ShapeDtypeStruct((T, B), jnp.int32)
  found = kernels_and_loops(
    make_train_step(model, optimizer), state, tokens, tokens, jax.random.key(0)
  )
  assert found == (2 * kernels, 2 * loops)


def test_an_evaluation_has_a_kernel_a_layer_or_one_loop(case):
  model, params, kernels, loops = case
  state = jax.eval_shape(lambda: model.initial_state((1,)))
  tokens = jax.ShapeDtypeStruct((T + 1, 1), jnp.int32)
  found = kernels_and_loops(partial(predict, model), params, state, tokens)
  assert found == (kernels, loops)


def test_sampling_has_kernels_for_the_prompt_alone(case):
  model, params, kernels, loops = case
  prompt = filled(np.zeros(3, np.int32))
  rules = DrawingRules(temperature=0.8)
  # (number of tokens, of samples, rules), and {}: no rule is traced.
  run = partial(_sample(model), (T, 2, rules), {})
  found = kernels_and_loops(run, params, jax.random.key(0), prompt)
  # Loops also over the parts of the prompt, what is left of it, and new tokens.
  assert found == (kernels, loops + 3)
