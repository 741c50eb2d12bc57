"""A language model's functions, exported with a free batch size."""

import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from lstm_jax import Autodiff, Explicit
from lstm_jax.language import ModelConfig, Regularizers, language_model, readout
from lstm_jax.training import Average, init_state, make_train_step
from lstm_jax.training.averaging import init_average
from tests.draws import normal_like, worst

H, T = 6, 4
# With symbolic sizes, the table W_e W_x is used for a V of up to 1,024.
V, LARGE_V = 11, 2000
ADJOINTS = Explicit(), Explicit("recompute"), Autodiff()


def make(vocabulary_size, adjoint=Explicit(), regularizers=None, **options):
  sizes = {"hidden_size": H, "embedding_size": H, "num_layers": 2}
  config = ModelConfig(**sizes | {"dtype": jnp.float64} | options)
  return language_model(
    config, vocabulary_size, adjoint=adjoint, regularizers=regularizers
  )


def spec(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def exported(f, model, params, sizes, *more):
  """Export f of (params, state, tokens, targets, ...), and read it back.

  `sizes` are T and B, as `export.symbolic_shape` takes them; `more` are arrays
  for the further arguments of f.
  """
  steps, batch = export.symbolic_shape(sizes)
  state = jax.eval_shape(lambda: model.initial_state((batch,)))
  tokens = jax.ShapeDtypeStruct((steps, batch), jnp.int32)
  shapes = spec(params), state, tokens, tokens, *spec(more)
  written = export.export(jax.jit(f))(*shapes).serialize()
  return export.deserialize(written).call


def outputs_and_gradient(model):
  def f(params, state, tokens, targets):
    _, logits = model.apply(params, state, tokens)
    value, gradient = jax.value_and_grad(model.loss, has_aux=True)(
      params, state, tokens, targets
    )
    return logits, value, gradient

  return f


@cache
def twin(vocabulary_size, tied):
  """Return `outputs_and_gradient` by autodiff; all cases of a size share it."""
  model = make(vocabulary_size, Autodiff(), tied=tied)
  return jax.jit(outputs_and_gradient(model))


def draw(model, key, vocabulary_size, steps, batch):
  state = normal_like(key, model.initial_state((batch,)))
  shape = steps + 1, batch
  tokens = jax.random.randint(key, shape, 0, vocabulary_size, jnp.int32)
  return state, tokens[:-1], tokens[1:]


@pytest.mark.exhaustive
# The batch size is a symbol or, as 7*b, an expression.
@pytest.mark.parametrize("sizes", [f"{T}, 7*b", "T, B"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize(
  ("vocabulary_size", "tied"),
  [(V, True), (LARGE_V, False)],
)
def test_outputs_loss_and_gradient_with_a_free_batch_size(
  sizes, adjoint, vocabulary_size, tied, key
):
  """With the table W_e W_x, and with rows of W_e that are gathered."""
  model = make(vocabulary_size, adjoint, tied=tied)
  params = normal_like(key, jax.eval_shape(model.init, key))
  call = exported(outputs_and_gradient(model), model, params, sizes)
  for batch in (7, 14):
    args = params, *draw(model, key, vocabulary_size, T, batch)
    expected = twin(vocabulary_size, tied)(*args)
    assert worst(call(*args), expected) < 1e-12


@pytest.mark.exhaustive
def test_the_logits_of_a_free_batch_size_come_in_chunks(key, monkeypatch):
  # The logits of two time steps, at the B that is assumed for a symbolic one.
  two_steps = 2 * readout.SYMBOLIC_BATCH * V
  monkeypatch.setattr(readout, "MAX_LOGITS", two_steps)
  model = make(V)
  params = normal_like(key, jax.eval_shape(model.init, key))
  steps, batch = export.symbolic_shape("4, B")
  hs = jax.ShapeDtypeStruct((steps, batch, H), jnp.float64)
  targets = jax.ShapeDtypeStruct((steps, batch), jnp.int32)

  def loss(params, hs, targets):
    w, b = params.readout, params.bias
    return readout.linear_cross_entropy(hs, w, b, targets)

  program = export.export(jax.jit(jax.grad(loss)))(spec(params), hs, targets)
  assert f"tensor<2x?x{V}xf64>" in program.mlir_module()
  call = exported(outputs_and_gradient(model), model, params, "4, B")
  args = params, *draw(model, key, V, T, 3)
  assert worst(call(*args), twin(V, False)(*args)) < 1e-12


@pytest.mark.exhaustive
def test_a_training_loss_with_noise_has_a_free_batch_size(key):
  rates = Regularizers(
    token_dropout=0.1,
    layer_dropout=0.2,
    output_dropout=0.3,
    weight_drop=0.1,
    zoneout_h=0.1,
    zoneout_c=0.2,
    ar_coef=1.0,
    tar_coef=1.0,
  )
  model = make(V, regularizers=rates)
  params = normal_like(key, jax.eval_shape(model.init, key))

  def f(params, state, tokens, targets, data):
    noise = jax.random.wrap_key_data(data)
    return jax.value_and_grad(model.training_loss, has_aux=True)(
      params, state, tokens, targets, noise
    )

  data = jax.random.key_data(key)
  call = exported(f, model, params, f"{T}, B", data)
  args = params, *draw(model, key, V, T, 3), data
  assert worst(call(*args), jax.jit(f)(*args)) < 1e-12


@pytest.mark.exhaustive
def test_a_training_step_has_a_free_batch_size(key):
  model = make(V)

  # The optimizer's state is (), as `serialize` does not know optax's types.
  def update(gradient, state, params=None):
    return jax.tree.map(lambda g: -0.1 * g, gradient), state

  optimizer = optax.GradientTransformation(lambda params: (), update)
  params = normal_like(key, jax.eval_shape(model.init, key))
  step = make_train_step(model, optimizer)

  def f(params, carry, tokens, targets):
    state = init_state(model, optimizer, params, 1)
    return step(state._replace(carry=carry), tokens, targets)

  call = exported(f, model, params, f"{T}, B")
  args = params, *draw(model, key, V, T, 3)
  (found, metrics), expected = call(*args), f(*args)
  assert int(metrics.num_tokens) == T * 3
  assert worst((found, metrics), expected) < 1e-12


def test_an_average_of_weights_can_be_serialized(key):
  average = init_average(make(V).init(key))
  written = export.export(jax.jit(lambda x: x))(spec(average)).serialize()
  found = export.deserialize(written).call(average)
  assert type(found) is Average and worst(found, average) == 0


# Runs an exported language model where this library is not imported. Its state,
# s0 to s3, is h and c of two layers.
PROGRAM = """
import sys
import jax, numpy as np
from jax import export

jax.config.update("jax_enable_x64", True)
directory = sys.argv[1]
step, prefill = (
  export.deserialize(bytearray(open(f"{directory}/{name}", "rb").read())).call
  for name in ("step", "prefill")
)
arrays = np.load(f"{directory}/inputs.npz")
tokens, state = arrays["tokens"], [arrays[f"s{k}"] for k in range(4)]
first, *state = prefill(tokens[:-2], *state)
logits = [first]
for row in tokens[-2:]:
  after, *state = step(row[None], *state)
  logits.append(after)
state = {f"s{k}": x for k, x in enumerate(state)}
np.savez(f"{directory}/found.npz", logits=np.concatenate(logits), **state)
assert "lstm_jax" not in sys.modules
"""


@pytest.mark.exhaustive  # docs/coming-from.md has the same in one process
def test_a_program_with_jax_alone_runs_an_exported_model(key, tmp_path):
  """A prompt of any length, then single time steps, for any batch size."""
  model = make(V, tied=True)
  params = normal_like(key, jax.eval_shape(model.init, key))
  structure = jax.tree.structure(model.initial_state())

  def flat(tokens, *leaves):
    state = jax.tree.unflatten(structure, leaves)
    state, logits = model.apply(params, state, tokens)
    return logits, *jax.tree.leaves(state)

  for name, sizes in (("step", "1, B"), ("prefill", "T, B")):
    steps, batch = export.symbolic_shape(sizes)
    state = jax.eval_shape(lambda n=batch: model.initial_state((n,)))
    tokens = jax.ShapeDtypeStruct((steps, batch), jnp.int32)
    program = export.export(jax.jit(flat))(tokens, *jax.tree.leaves(state))
    (tmp_path / name).write_bytes(program.serialize())
  state, tokens, _ = draw(model, key, V, 7, 3)
  leaves = {f"s{k}": x for k, x in enumerate(jax.tree.leaves(state))}
  np.savez(tmp_path / "inputs.npz", tokens=tokens, **leaves)
  # -I ignores the variable with the place of compiled modules (conftest).
  place = f"pycache_prefix={sys.pycache_prefix or ''}"
  command = [sys.executable, "-I", "-X", place, "-c", PROGRAM, str(tmp_path)]
  subprocess.run(command, check=True)
  found = dict(np.load(tmp_path / "found.npz"))
  logits, *last = flat(tokens, *leaves.values())
  assert worst(found.pop("logits"), logits) < 1e-12
  assert worst(list(found.values()), last) < 1e-12
