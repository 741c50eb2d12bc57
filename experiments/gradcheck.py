"""Check the gradients against autodiff and central differences.

  python -m experiments.gradcheck

checks, in float64, every cell unrolled over time, and the language model on a
piece of the corpus, with random cotangents on every output. The exit status is
0 only if each explicit gradient agrees with autodiff to 1e-12 and with central
differences to 1e-6, in the relative error that `lstm_jax.testing` defines.

  python -m experiments.gradcheck --plant=lstm.dc

scales one term of one backward pass by 1.01 before the checks. The table then
shows which gradients are wrong, and the exit status is 1.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.cli import launch, make_console
from experiments.trainer.config import CELLS, LARGEST, TrainConfig
from experiments.trainer.corpus import read_corpus_text
from experiments.trainer.format import number_table, print_table
from lstm_jax.cells import RELU, affine
from lstm_jax.cells.platform import clear_programs
from lstm_jax.language import (
  CharTokenizer,
  ModelConfig,
  language_model,
  loss,
  make_batches,
  model,
  readout,
)
from lstm_jax.sequence import Adjoint, Autodiff, Explicit, unroll
from lstm_jax.testing import Report, gradcheck, plant, terms

AUTODIFF_TOLERANCE, DIFFERENCE_TOLERANCE = 1e-12, 1e-6
STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6  # of a cell's check
# Of the model's, which reads the table W_e W_x up to V 66 (`reads_table`).
MODEL_STEPS, EMBEDDING, MODEL_HIDDEN, LAYERS = 22, 5, 7, 2


def check_cell(cell: Any, key: jax.Array) -> Report:
  """Check the gradient of an unrolled cell: weights, state and inputs."""

  def arguments(key):
    params = cell.init(key, INPUT, HIDDEN, jnp.float64)
    return {
      "params": params,
      "state": cell.initial_state(params, (BATCH,)),
      "xs": jnp.zeros((STEPS, BATCH, INPUT), jnp.float64),
    }

  def run(adjoint):
    return lambda x: unroll(
      cell, x["params"], x["state"], x["xs"], adjoint=adjoint
    )

  return compare(cell, run, arguments, key)


def first_batch(text: str) -> tuple[int, tuple[Any, Any]]:
  """Return V, and tokens and targets [T, B] of the beginning of a text.

  Raises:
    ValueError: the text is too short.
  """
  tokenizer = CharTokenizer.from_text(text)
  tokens = tokenizer.encode(text[: MODEL_STEPS * BATCH + 1])
  return tokenizer.size, make_batches(tokens, BATCH, MODEL_STEPS).batch(0)


def check_model(
  cell: Any, vocabulary_size: int, batch: tuple[Any, Any], key: jax.Array
) -> Report:
  """Check the gradient of a language model on tokens and targets [T, B]."""
  config = ModelConfig(
    cell=cell,
    embedding_size=EMBEDDING,
    hidden_size=MODEL_HIDDEN,
    num_layers=LAYERS,
    dtype=jnp.float64,
  )

  def arguments(key):
    lm = language_model(config, vocabulary_size)
    return {"params": lm.init(key), "state": lm.initial_state((BATCH,))}

  def run(adjoint):
    lm = language_model(config, vocabulary_size, adjoint=adjoint)
    return lambda x: lm.loss(x["params"], x["state"], *batch)

  return compare(cell, run, arguments, key)


def compare(
  cell: Any,
  run: Callable[[Adjoint], Callable],
  arguments: Callable,
  key: jax.Array,
) -> Report:
  """Compare the gradients of run(Explicit()) with those of run(Autodiff()).

  They are computed at random values with the shapes of arguments(key).
  """
  x_key, key = jax.random.split(key)  # with one key, cotangents would repeat x
  x = gaussian(arguments, x_key)
  # The step of the central differences. At 1e-3, those of a layer-normalised
  # LSTM are wrong by 1.2e-6: its fifth derivative is large where a row has
  # little variance. The derivative of ReLU jumps at 0, which a step of 1e-6
  # crosses only if a pre-activation is almost 0.
  has_relu = RELU in getattr(cell, "arguments", ())  # of `with_activation`
  epsilon = 1e-6 if has_relu else 5e-4
  return gradcheck(run(Explicit()), run(Autodiff()), x, key, epsilon=epsilon)


def gaussian(arguments: Callable[[jax.Array], Any], key: jax.Array) -> Any:
  """Return Gaussian arrays with the shapes of arguments(key).

  Their standard deviation is ½, so that no bias or state is zero and no unit
  is saturated. For the normaliser n of an sLSTM, 1 + |n| is used: after any
  step n is at least 1, and the output, which is divided by n, has a pole at 0.
  """
  draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))

  def drawn(path, a):
    value = jnp.asarray(0.5 * draw.standard_normal(a.shape), a.dtype)
    is_normaliser = getattr(path[-1], "name", "") == "n"
    return 1 + jnp.abs(value) if is_normaliser else value

  return jax.tree.map_with_path(drawn, jax.eval_shape(arguments, key))


def planted_module(planted: str) -> tuple[str, Any]:
  """Return the name of a cell, `affine` or `loss`, and it with an error.

  The terms of `affine` for tokens cannot be planted: on a corpus of at most
  MODEL_STEPS × BATCH distinct characters, only the Mogrifier LSTM's language
  model applies `linear` to tokens (`reads_table`), so all others would pass.

  Raises:
    ValueError: there is no such term; the message lists those of its cell.
  """
  modules = CELLS | {"affine": affine, "loss": loss}
  name, _, term = planted.partition(".")
  advice = f"pass one of {', '.join(modules)} to list its terms"
  if name in modules:
    own = [t for t in terms(modules[name]) if not t.endswith("_tokens")]
    if term in own:
      return name, plant(modules[name], term)
    advice = f"those of {name} are {', '.join(own)}"
  raise ValueError(f"no backward pass has a term {planted!r}; {advice}")


@contextmanager
def planted_model(name: str, module: ModuleType) -> Iterator[None]:
  """Have language models use the planted module.

  A language model uses `losses` and `affine_backward` in its readout, and
  `linear` for the table of its lowest layer or to gather embeddings of tokens.
  """
  clear_programs()  # else those of the right code would be checked
  try:
    if name == "loss":
      with mock.patch.object(readout, "losses", module):
        yield
      return
    with (
      mock.patch.object(model, "linear", module.linear),
      mock.patch.object(readout, "affine_backward", module.affine_backward),
    ):
      yield
  finally:
    clear_programs()


def table(title: str, report: Report) -> Table:
  """Return a table of relative errors: of tensors, and of unequal outputs."""
  names = "size", "vs autodiff", "vs central", "worst at", "vs directional"
  result = number_table("tensor", *names, title=title)
  for row in report.tensors:
    result.add_row(
      row.name,
      f"{row.size:,}",
      _format_error(row.explicit_autodiff.relative, AUTODIFF_TOLERANCE),
      _format_error(row.explicit_central.relative, DIFFERENCE_TOLERANCE),
      str(list(row.explicit_central.where)),
      _format_error(row.explicit_directional.relative, DIFFERENCE_TOLERANCE),
    )
  if not report.value <= AUTODIFF_TOLERANCE:  # also NaN
    value = _format_error(report.value, AUTODIFF_TOLERANCE)
    result.add_row("(outputs)", "", value)
  return result


def _format_error(relative: float, tolerance: float) -> Text:
  text = f"{relative:.1e}"
  if relative <= tolerance:
    return Text(text)
  return Text(f"{text} ✗", style="red")


def run(corpus: str, planted: str, seed: int, console: Console) -> bool:
  """Print every table, and return whether every gradient passes.

  Raises:
    ValueError: the corpus cannot be read or is too short, or there is no term
      `planted`.
  """
  vocabulary_size, batch = first_batch(read_corpus_text(corpus))
  cells = dict(CELLS)
  context: AbstractContextManager = nullcontext()
  if planted:
    name, module = planted_module(planted)
    if name in cells:
      cells = {name: module}
    else:
      context = planted_model(name, module)
  key = jax.random.key(seed)
  reports = {}
  for name, cell in cells.items():
    reports[f"{name}, unrolled over {STEPS} steps"] = check_cell(cell, key)
  with context:
    for name, cell in cells.items():
      title = f"language model, {LAYERS} layers of {name}, on {corpus}"
      reports[title] = check_model(cell, vocabulary_size, batch, key)
  for title, report in reports.items():
    print_table(table(title, report), console)
  passed = all(
    r.passes(AUTODIFF_TOLERANCE, DIFFERENCE_TOLERANCE) for r in reports.values()
  )
  console.print(
    f"explicit gradients {'agree' if passed else 'DISAGREE'}: tolerance "
    f"{AUTODIFF_TOLERANCE} against autodiff, {DIFFERENCE_TOLERANCE} against "
    "central differences"
    f"{f'; planted: {planted}, scaled by 1.01' if planted else ''}",
  )
  return passed


def main() -> int:
  """Read the flags, check and print."""
  jax.config.update("jax_enable_x64", True)
  passed = run(CORPUS.value, PLANT.value, SEED.value, make_console())
  return 0 if passed else 1


if __name__ == "__main__":
  CORPUS = flags.DEFINE_string(
    "corpus",
    TrainConfig().data.corpus,
    "Text on which the model is checked.",
  )
  PLANT = flags.DEFINE_string(
    "plant",
    "",
    "Term to scale by 1.01, such as lstm.dc; lstm alone lists those of the "
    "LSTM.",
  )
  SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of weights, inputs and cotangents.", 0, LARGEST
  )
  launch(main)
