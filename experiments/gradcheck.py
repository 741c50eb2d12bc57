"""Prove the gradients: explicit against autodiff against central differences.

  python -m experiments.gradcheck

checks, in float64, every cell unrolled over time, and the whole language model
on a piece of the corpus, with random cotangents on every output. The exit
status is 0 only if each explicit gradient agrees with autodiff to 1e-12 and
with central differences to 1e-6, relative as `lstm_jax.testing` defines it.

  python -m experiments.gradcheck --plant=lstm.dc

scales one term of one backward by 1.01 first: the table shows what it spoils,
and the exit status is 1.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.cli import LARGEST, launch, plain_console
from experiments.trainer.config import CELLS, TrainConfig
from lstm_jax.cells import affine
from lstm_jax.language import (
  ModelConfig,
  characters,
  language_model,
  loss,
  make_batches,
  model,
  read_text,
)
from lstm_jax.sequence import unroll
from lstm_jax.testing._gradcheck import Error, Report, gradcheck
from lstm_jax.testing.mutation import plant, terms

AUTODIFF, DIFFERENCES = 1e-12, 1e-6
STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6  # of a cell's check
MODEL_STEPS, EMBEDDING, MODEL_HIDDEN, LAYERS = 16, 5, 7, 2  # of the model's

# Steps of 1e-3 differ from a layer-normalised LSTM's derivative by 1.2e-6: its
# fifth derivative is large where a row to be normalised has little variance.
EPSILON = 5e-4


def check_cell(cell: ModuleType, key: jax.Array) -> Report:
  """Check a cell, unrolled, in every parameter, the state and the inputs."""

  def start(key):
    params = cell.init(key, INPUT, HIDDEN, jnp.float64)
    return {
      "params": params,
      "state": cell.initial_state(params, (BATCH,)),
      "xs": jnp.zeros((STEPS, BATCH, INPUT), jnp.float64),
    }

  def run(vjp):
    return lambda x: unroll(cell, x["params"], x["state"], x["xs"], vjp=vjp)

  return compare(run, start, key)


def check_model(cell: ModuleType, text: str, key: jax.Array) -> Report:
  """Check a language model of stacked cells on the beginning of a text."""
  vocabulary = characters(text)
  config = ModelConfig(
    vocabulary_size=vocabulary.size,
    cell=cell,
    embedding_size=EMBEDDING,
    hidden_size=MODEL_HIDDEN,
    num_layers=LAYERS,
    dtype=jnp.float64,
  )
  tokens = vocabulary.encode(text[: MODEL_STEPS * BATCH + 1])
  block = make_batches(tokens, BATCH, MODEL_STEPS).batch(0)

  def start(key):
    lm = language_model(config)
    return {"params": lm.init(key), "state": lm.initial_state((BATCH,))}

  def run(vjp):
    lm = language_model(config, vjp=vjp)
    return lambda x: lm.loss(x["params"], x["state"], *block)

  return compare(run, start, key)


def compare(run: Callable, start: Callable, key: jax.Array) -> Report:
  """Check run("explicit") at arrays of the shapes that start(key) has."""
  x = gaussian(start, key)
  return gradcheck(run("explicit"), run("autodiff"), x, key, epsilon=EPSILON)


def gaussian(start: Callable[[jax.Array], Any], key: jax.Array) -> Any:
  """Return Gaussian arrays, deviation ½, of the shapes that start(key) has.

  So no bias and no state is zero, and no unit is saturated.
  """
  draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  return jax.tree.map(
    lambda a: jnp.asarray(0.5 * draw.standard_normal(a.shape), a.dtype),
    jax.eval_shape(start, key),
  )


def places() -> dict[str, ModuleType]:
  """Return every module whose backward can be planted, by its short name."""
  return CELLS | {"affine": affine, "loss": loss}


def known_terms() -> list[str]:
  """Return every term that can be planted, as `--plant` takes it."""
  return [f"{p}.{t}" for p, module in places().items() for t in terms(module)]


def planted_model(name: str, module: ModuleType) -> AbstractContextManager:
  """Return a context in which language models use a planted module."""
  if name == "loss":
    return mock.patch.object(model, "losses", module)
  return mock.patch.object(model, "linear", module.linear)


def table(title: str, report: Report) -> Table:
  """Return a report as a table: a row a tensor, worst relative errors."""
  result = Table(
    title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
  )
  result.add_column("explicit against", no_wrap=True)
  for name in ("size", "autodiff", "central", "worst at", "directions"):
    result.add_column(name, justify="right", no_wrap=True)
  for row in report.tensors:
    result.add_row(
      row.name,
      f"{row.size:,}",
      _cell(row.explicit_autodiff, AUTODIFF),
      _cell(row.explicit_central, DIFFERENCES),
      str(list(row.explicit_central.where)),
      _cell(row.explicit_directional, DIFFERENCES),
    )
  return result


def _cell(error: Error, tolerance: float) -> Text:
  text = f"{error.relative:.1e}"
  if error.relative <= tolerance:
    return Text(text)
  return Text(f"{text} ✗", style="red")


def run(corpus: str, planted: str, seed: int, console: Console) -> bool:
  """Print every table and return whether every gradient is right.

  Raises:
    ValueError: the corpus cannot be read, or `planted` names no term.
  """
  text = read_text(corpus)
  cells = dict(CELLS)
  context: AbstractContextManager = nullcontext()
  if planted:
    name, _, term = planted.partition(".")
    if planted not in known_terms():
      raise ValueError(
        f"no backward has a term {planted!r}; the terms are "
        f"{', '.join(known_terms())}"
      )
    module = plant(places()[name], term)
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
      reports[title] = check_model(cell, text, key)
  for title, report in reports.items():
    console.print(table(title, report))
  passed = all(r.passes(AUTODIFF, DIFFERENCES) for r in reports.values())
  console.print(
    f"explicit gradients {'agree' if passed else 'DISAGREE'}: tolerance "
    f"{AUTODIFF} against autodiff, {DIFFERENCES} against central differences"
    f"{f'; planted: {planted}, scaled by 1.01' if planted else ''}",
  )
  return passed


def main() -> int:
  """Read the flags, check and print."""
  jax.config.update("jax_enable_x64", True)
  passed = run(CORPUS.value, PLANT.value, SEED.value, plain_console())
  return 0 if passed else 1


if __name__ == "__main__":
  CORPUS = flags.DEFINE_string(
    "corpus", TrainConfig().corpus, "The text that the model is checked on."
  )
  PLANT = flags.DEFINE_string(
    "plant",
    "",
    "A term to scale by 1.01, as lstm.do; a name that is none lists them all.",
  )
  SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of weights, inputs and cotangents.", 0, LARGEST
  )
  launch(main)
