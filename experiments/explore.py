"""Look into a trained model: a page of every unit, gate and prediction.

  python -m experiments.explore --run=FOLDER

writes FOLDER/explore.html, one file that a browser opens from the disk. It
shows a text coloured by any unit's state or gate, what the model expects after
the character or word at the cursor, the units sorted by what they track, and
how far back the gradient of each prediction reaches. The text is the beginning
of the run's held-out split, or that of --text.

Everything is computed here and stored a byte a number (packed.py); what the
page shows is unpacked when it is asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

from experiments.analysis.features import FEATURES, scores
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import MEANING, SIGNED, read, signals
from experiments.cli import launch, plain_console
from experiments.pages.packing import page, script
from experiments.pages.quantise import (
  quantise_gate,
  quantise_norms,
  quantise_signed,
)
from experiments.trainer import run_dir
from experiments.trainer.config import CELLS, TrainConfig
from experiments.trainer.data import read_again
from lstm_jax.cells.cell import Cell
from lstm_jax.language import LanguageParams, read_text, split

TEMPLATE = Path(__file__).parent / "pages" / "explore.html"
WINDOW = 96  # steps back: two lines of verse
LIKELIEST = 10  # next tokens


@dataclass(frozen=True)
class ExploreConfig:
  """What a page is made of; the program's --help explains each."""

  run: str
  text: str = ""
  length: int = 5000
  output: str = ""


class Explored(NamedTuple):
  """The page that was written."""

  path: Path
  size: int  # bytes


class Blobs:
  """Arrays as a page carries them."""

  def __init__(self) -> None:
    self._scripts: list[str] = []

  def add(self, array: np.ndarray) -> int:
    """Take an array and return the number that names it."""
    number = len(self._scripts)
    self._scripts.append(script(f"blob{number}", array.tobytes()))
    return number

  def page(self, header: dict[str, Any]) -> str:
    """Return the page of these arrays, and a header that numbers them."""
    return page(TEMPLATE, header, self._scripts)


def run(config: ExploreConfig, console: Console) -> Explored:
  """Read the text with the run's model and write the page.

  Raises:
    ValueError: the run is not usable; or the text cannot be read, has fewer
      than two tokens, or a character that the model does not know.
    OSError: the page cannot be written.
  """
  directory = Path(config.run)
  trained = run_dir.load(directory)
  path = Path(config.output) if config.output else directory / run_dir.PAGE
  run_dir.check_parent(path)
  record = run_dir.read_record(directory)
  of = run_dir.configuration(record, TrainConfig())
  vocabulary = trained.vocabulary
  if config.text:
    text, source = read_text(config.text), f"of {config.text}"
  else:
    corpus = read_again(of.corpus, record.get("corpus_sha256"))
    _, text = split(corpus, of.val_fraction)
    source = f"held out of {of.corpus}"
  unit = vocabulary.unit
  if unit == "character":  # what comes later need not be known
    text = text[: config.length]
  tokens = vocabulary.encode(text)[: config.length]
  if len(tokens) < 2:
    raise ValueError(f"the text needs at least 2 {unit}s, got {len(tokens)}")
  about = (
    f"{of.cell}, {of.num_layers} × {of.hidden_size} "
    f"units, after {trained.step:,} updates; {len(tokens):,} {unit}s {source}"
  )
  blobs, pieces = Blobs(), vocabulary.pieces(tokens)
  cell = CELLS[of.cell]
  header = describe(cell, trained.params, tokens, pieces, blobs)
  symbols = list(vocabulary.symbols)
  header |= {"about": about, "unit": unit, "symbols": symbols}
  written = blobs.page(header).encode()
  path.write_bytes(written)
  console.print(f"run     {directory}: {about}\n", end="", soft_wrap=True)
  console.print(f"page    {path}: {len(written) / 1e6:,.1f} MB", soft_wrap=True)
  return Explored(path, len(written))


def describe(
  cell: Cell,
  params: LanguageParams,
  tokens: np.ndarray,
  pieces: list[str],
  blobs: Blobs,
) -> dict[str, Any]:
  """Return what the page's header says of a text that a model reads.

  Args:
    cell: of every layer.
    params: the model's weights.
    tokens: the text, integers [N].
    pieces: of the text, what each token adds to it.
    blobs: takes the arrays; the header has their numbers.
  """
  layers, logits = read(cell, params, jnp.asarray(tokens))
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  values = {feature.name: feature.of_pieces(pieces) for feature in FEATURES}
  tracked = {n: v for n, v in values.items() if (v != v[0]).any()}
  return {
    "pieces": pieces,
    "tokens": blobs.add(tokens.astype("<u4")),
    "window": WINDOW,
    "features": [
      {"name": name, "measure": "AUC" if v.dtype == bool else "r"}
      for name, v in tracked.items()
    ],
    "absent": [name for name in values if name not in tracked],
    "next": _next(logits, tokens, blobs),
    "layers": [
      {
        "signals": [
          pack_signal(name, np.asarray(found).T, [*tracked.values()], blobs)
          for name, found in signals(cell, layer).items()
        ],
        "paths": [
          pack_path(name, np.asarray(norms), blobs)
          for name, norms in path._asdict().items()
        ],
      }
      for layer, path in zip(layers, paths, strict=True)
    ],
  }


def pack_signal(
  name: str, values: np.ndarray, tracked: list[np.ndarray], blobs: Blobs
) -> dict[str, Any]:
  """Return a signal [H, N] as the header has it, and its bytes as a blob."""
  if name in SIGNED:
    levels, scale = quantise_signed(values)
  else:
    levels, scale = quantise_gate(values), np.ones(len(values))
  return {
    "name": name,
    "meaning": MEANING[name],
    "signed": name in SIGNED,
    "scale": scale.tolist(),
    "scores": [
      scores(levels, feature).round(4).tolist() for feature in tracked
    ],
    "blob": blobs.add(levels),
  }


def pack_path(name: str, norms: np.ndarray, blobs: Blobs) -> dict[str, Any]:
  """Return norms [N, W] as the header has them, and their bytes as a blob."""
  levels, low, high = quantise_norms(norms)
  return {"name": name, "low": low, "high": high, "blob": blobs.add(levels)}


def _next(
  logits: jax.Array, tokens: np.ndarray, blobs: Blobs
) -> dict[str, int]:
  """Return the blobs of the likeliest next tokens, and of the text's own."""
  count = min(LIKELIEST, logits.shape[-1])
  log_p, likeliest = jax.lax.top_k(logits, count)
  total = jax.nn.logsumexp(logits, axis=-1)
  shares = np.rint(65535 * np.exp(np.asarray(log_p - total[:, None])))
  own = logits[np.arange(len(tokens) - 1), tokens[1:]] - total[:-1]
  return {
    "count": count,
    "tokens": blobs.add(np.asarray(likeliest).astype("<u4")),
    "shares": blobs.add(shares.astype("<u2")),  # of 65,535
    "own": blobs.add(np.exp(np.asarray(own)).astype("<f4")),
  }


def _flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string("run", None, "Folder of the run.", required=True),
    flags.DEFINE_string(
      "text",
      "",
      "A UTF-8 file, whose beginning is shown; empty for the beginning of the "
      "run's held-out split.",
    ),
    flags.DEFINE_integer(
      "length",
      5000,
      "Characters of the text at most, or words. The page has about a byte for "
      "each of them, each unit and each of an LSTM's six signals.",
      lower_bound=2,
    ),
    flags.DEFINE_string(
      "output", "", "The page's file; empty for explore.html in the run's."
    ),
  ]


def main() -> None:
  """Read the flags and write the page."""
  config = ExploreConfig(**{flag.name: flag.value for flag in FLAGS})
  run(config, plain_console())


if __name__ == "__main__":
  FLAGS = _flags()
  launch(main)
