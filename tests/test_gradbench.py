"""The cell and the objective of docs/gradbench.md, and its timing program."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, Step
from lstm_jax.testing import plant, terms
from tests.draws import worst
from tests.test_docs import DOCS, code_blocks, run

FILE, TIMES = code_blocks((DOCS / "gradbench.md").read_text("utf-8"))
LAYERS, H, T = 2, 3, 7


@pytest.fixture(scope="module")
def module(tmp_path_factory):
  directory = tmp_path_factory.mktemp("gradbench")
  (directory / "gradbench_lstm.py").write_text(FILE, encoding="utf-8")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(directory)
    yield importlib.import_module("gradbench_lstm")


@pytest.fixture(scope="module")
def data():
  """Parameters and state as GradBench draws them; a sequence of random bits."""
  draw = np.random.default_rng(0)
  shapes = (2 * LAYERS, 4 * H), (3, H), (2 * LAYERS, H)
  sequence = draw.integers(0, 2, (T, H)).astype(float)
  return *(draw.random(shape) for shape in shapes), sequence


def published(xp, main, extra, state, sequence):
  """Return the loss, number by number, as GradBench's lstm.hpp computes it.

  Args:
    xp: numpy, jax.numpy or torch.
    main: [2 · LAYERS, 4 · H], for each layer the weights and the biases of the
      gates f, i, o and g.
    extra: [3, H], the weights of the inputs, and weights and biases of the
      outputs.
    state: [2 · LAYERS, H], h and c of each layer.
    sequence: [T, H].
  """

  def sigmoid(a):
    return 1 / (1 + xp.exp(-a))

  h = [[state[2 * k][j] for j in range(H)] for k in range(LAYERS)]
  c = [[state[2 * k + 1][j] for j in range(H)] for k in range(LAYERS)]
  total = 0.0
  for t in range(T - 1):
    outputs = []
    for j in range(H):  # no unit reads another
      x = sequence[t][j] * extra[0][j]
      for k in range(LAYERS):
        w, b = main[2 * k], main[2 * k + 1]
        forget = sigmoid(x * w[j] + b[j])
        ingate = sigmoid(h[k][j] * w[H + j] + b[H + j])
        outgate = sigmoid(x * w[2 * H + j] + b[2 * H + j])
        change = xp.tanh(h[k][j] * w[3 * H + j] + b[3 * H + j])
        c[k][j] = c[k][j] * forget + ingate * change
        x = h[k][j] = outgate * xp.tanh(c[k][j])
      outputs.append(x * extra[1][j] + extra[2][j])
    log_sum = xp.log(2 + sum(xp.exp(y) for y in outputs))  # 2: as published
    for j in range(H):
      total = total + sequence[t + 1][j] * (outputs[j] - log_sum)
  return -total / ((T - 1) * H)


@pytest.fixture(scope="module")
def expected(data):
  """The gradient of the published loss, as one vector."""
  # Not compiled: its numbers share a few small programs.
  gradients = jax.grad(partial(published, jnp), (0, 1))(*data)
  return np.concatenate([np.ravel(gradient) for gradient in gradients])


OTHERS = Explicit("recompute"), Step(), Autodiff()


@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", [Explicit(), *OTHERS])
def test_loss_and_gradient_are_those_of_the_published_equations(
  module, data, expected, adjoint
):
  loss = jax.jit(partial(module.objective, adjoint=adjoint))(*data)
  assert abs(loss - published(np, *data)) < 1e-12
  found = jax.jit(partial(module.jacobian, adjoint=adjoint))(*data)
  assert found.shape == (LAYERS * 8 * H + 3 * H,)
  assert np.abs(expected).min() > 1e-6 and worst(found, expected) < 1e-12


@pytest.mark.exhaustive
def test_no_planted_error_passes(module, data):
  expected = jax.jit(module.jacobian)(*data)
  planted = terms(module)
  # A variable that is assigned twice is two terms: da_f#1 and da_f#2.
  names = {term.partition("#")[0] for term in planted}
  assert {"dc_sum", "da_f", "da_i", "da_o", "da_g", "dh", "dc", "dw"} <= names
  for term in planted:
    cell = plant(module, term)
    found = jax.jit(partial(module.jacobian, cell=cell))(*data)
    assert worst(found, expected) > 1e-6, term


def test_loss_and_gradient_are_those_of_torch(module, data):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  main, extra, state, sequence = map(torch.tensor, data)
  main.requires_grad_()
  extra.requires_grad_()
  loss = published(torch, main, extra, state, sequence)
  loss.backward()
  assert abs(jax.jit(module.objective)(*data) - loss.item()) < 1e-12
  expected = torch.cat([main.grad.ravel(), extra.grad.ravel()]).numpy()
  assert worst(jax.jit(module.jacobian)(*data), expected) < 1e-12


def test_parameters_of_another_size_are_not_cut_into_more_layers(module, data):
  main, extra, state, sequence = data
  wide = [np.repeat(x, 2, axis=1) for x in (main, state)]
  for arguments in (
    (wide[0], extra, state, sequence),
    (main, extra, wide[1], sequence),
    (wide[0], extra, wide[1], sequence),
  ):
    with pytest.raises(ValueError, match="cannot reshape"):
      module.objective(*arguments)


def test_x_has_the_size_of_h(module, key):
  with pytest.raises(ValueError, match="must have the same size, got 3 and 4"):
    module.init(key, 3, 4)


@pytest.mark.exhaustive
def test_the_programs_that_are_timed_agree_with_torch(module, capsys):
  """The code of the page asserts that; without PyTorch, it leaves that out."""
  del module  # the fixture: TIMES imports the file that it writes
  # Two small sizes replace those of the page, which the # comments out.
  assert "SIZES = (2, 1024), " in TIMES
  code = TIMES.replace("SIZES = (2, 1024), ", "SIZES = (2, 6), (1, 2)  # ")
  run(code, {})
  assert capsys.readouterr().out.count("by hand") == 2  # one line per size
