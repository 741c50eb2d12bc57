"""Export a trained model as one file, for programs without this library.

  python -m experiments.export --run=DIRECTORY --format=onnx --out=model.onnx

writes the best checkpoint of the run as a function of tokens [T, B] and the
state before them, which returns the logits [T, B, V] and the state after them,
for any T and B ≥ 1. docs/coming-from.md has programs that read these formats:

  onnx       with the vocabulary, for any runtime of ONNX, in the weights' dtype
  stablehlo  for `jax.export.deserialize`, on the kind of device that wrote it,
             with the version of JAX that wrote it or a later one.
             The arguments are the tokens and the arrays of the state, layer by
             layer, each layer's in the order of its state's fields (h, c for
             `lstm`; h, c, n, m for `slstm`). The results are the logits and the
             arrays of the state after the tokens, in the same order

or writes a page for people:

  html       one file that a browser opens from the disk, without a network. It
             holds the model in 8-bit weights. The model writes text while one
             watches, and scores and continues what one types. The program also
             prints what 8 bits cost (docs/write.md)
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import export

from experiments.cli import launch
from experiments.pages import writer
from experiments.pages.packed_model import check_model, describe_cost
from experiments.pages.packing import check_out
from experiments.trainer.corpus import find_corpus
from experiments.trainer.data import SPLITS, read_excerpt
from experiments.trainer.files import write_bytes
from experiments.trainer.trained import Trained, load
from lstm_jax.interop.onnx import language_model_to_onnx

FORMATS = "onnx", "stablehlo", "html"


def run(run: str, format: str, out: str) -> str:
  """Write the run's best model to a file, and return a line about it.

  Raises:
    ValueError: the format is not one of FORMATS; `out` cannot be written, is
      the run's corpus or is in a run directory; the run has no usable
      checkpoint; the format does not support the run's cell; the package onnx
      is not installed; or, for a page, the model is too large, its 8-bit
      weights raise the loss too much, or the run's corpus cannot be read or has
      changed.
    OSError: the file cannot be written.
  """
  if format not in FORMATS:
    known = ", ".join(FORMATS)
    raise ValueError(f"format must be one of {known}, got {format!r}")
  path, cost = Path(out), ""
  check_out(path, [])
  trained = load(Path(run))
  check_out(path, [trained.corpus_sha256])
  match format:
    case "onnx":
      written = _onnx(trained)
    case "stablehlo":
      written = _stablehlo(trained)
    case _:
      written, cost = _html(trained, Path(run))
  write_bytes(path, written)
  tokenizer = trained.tokenizer
  return (
    f"{out}: {len(written):,} bytes, {format}, of training step "
    f"{trained.step}; V = {tokenizer.size}, a token is a {tokenizer.unit}{cost}"
  )


def _onnx(trained: Trained) -> bytes:
  cell = trained.config.model.cell
  try:
    model = language_model_to_onnx(cell, trained.params, trained.tokenizer)
  except ModuleNotFoundError as error:
    raise ValueError(str(error)) from None
  return model.SerializeToString()


def _stablehlo(trained: Trained) -> bytes:
  model, params = trained.model, trained.params
  sizes: Any = export.symbolic_shape("T, B")
  state = jax.eval_shape(lambda: model.initial_state(sizes[1:]))
  leaves, structure = jax.tree.flatten(state)

  def apply(tokens: jax.Array, *leaves: jax.Array) -> tuple[jax.Array, ...]:
    before = jax.tree.unflatten(structure, leaves)
    after, logits = model.apply(params, before, tokens)
    return logits, *jax.tree.leaves(after)

  tokens = jax.ShapeDtypeStruct(sizes, jnp.int32)
  return bytes(export.export(jax.jit(apply))(tokens, *leaves).serialize())


def _html(trained: Trained, directory: Path) -> tuple[bytes, str]:
  """Return the page, and what its 8-bit weights cost."""
  check_model(trained)
  data = find_corpus(directory, trained.config.data, trained.corpus_sha256)
  # A run with a development split is not to see its validation or test split.
  split = "dev" if data.dev_fraction else "val"
  excerpt = read_excerpt(data, trained.corpus_sha256, split=split)
  source = f"the {SPLITS[split]} split of {Path(data.corpus).name}"
  page, cost = writer.make_page(trained, excerpt.text, source)
  said = describe_cost(cost, trained.tokenizer)
  return page.encode(), f"; {said} of {source}"


def main() -> None:
  """Read the flags and write the file."""
  print(run(**{flag.name: flag.value for flag in FLAGS}))


if __name__ == "__main__":
  FLAGS = [
    flags.DEFINE_string("run", "", "Run directory."),
    flags.DEFINE_enum(
      "format",
      "onnx",
      FORMATS,
      "onnx for runtimes of ONNX, stablehlo for programs with JAX, html for a "
      "page in which the model writes text.",
    ),
    flags.DEFINE_string(
      "out", "", "File to write or to replace, outside of run directories."
    ),
  ]
  launch(main, required=("run", "out"))
