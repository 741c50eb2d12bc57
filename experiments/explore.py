"""Look inside a trained model: a page of every unit, gate and prediction.

  python -m experiments.explore --run=DIRECTORY

writes explore.html into the run directory, one file that a browser opens from
the disk. It shows a text colored by the state or gate of any unit, the
distribution of the next token at the cursor, the units sorted by how well they
track a feature of the text, and how far back the gradient of each prediction
reaches; and it reads a text that is typed into it. docs/explore.md explains it.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.cli import launch, make_console
from experiments.pages.explore import describe, describe_text, make_page
from experiments.pages.packing import Page, check_out, write_page
from experiments.trainer import run_dir
from experiments.trainer.corpus import find_corpus
from experiments.trainer.data import SPLITS, default_split, read_excerpt
from experiments.trainer.records import (
  config_from_flags,
  decoded_as_utf8,
  define_flags,
)
from experiments.trainer.trained import Trained, load
from lstm_jax.language import read_text
from lstm_jax.language.options import check_options, option


@dataclass(frozen=True)
class ExploreConfig:
  """A model, a text, and where the page is written."""

  run: str = option("", "Run directory.")
  text: str = option(
    "",
    "A UTF-8 file, whose beginning is shown; empty for the run's development "
    "split, or else its test split, or else its validation split.",
  )
  prompt: str = option("", "Text of your own, which is shown instead.")
  length: int = option(
    5000,
    "At most this many tokens (characters, or words) of the text are shown. "
    "Each takes about a byte of the page for each signal of each unit, and 96 "
    "for each part of a layer's state, such as h.",
    bounds="[2, inf)",
  )
  out: str = option(
    "",
    "File of the page, to write or to replace; in a run directory, no other "
    "than its explore.html. Empty for explore.html in that of the run.",
  )

  def __post_init__(self):
    check_options(self)
    if self.text and self.prompt:
      raise ValueError(
        "text and prompt exclude each other, got "
        f"--text={self.text} and --prompt={self.prompt!r}"
      )


def run(config: ExploreConfig, console: Console) -> Page:
  """Read the text with the run's model and write the page.

  Raises:
    ValueError: the run is not usable; the page would replace the text, a corpus
      or another file of a run directory; or the text cannot be read, has fewer
      than two tokens or a character that the model does not know, or makes its
      states overflow.
    OSError: the page cannot be written.
  """
  directory = Path(config.run)
  trained = load(directory)
  path = Path(config.out or directory / run_dir.PAGE)
  check_out(path, [trained.corpus_sha256], run_dir.PAGE)
  if config.text and path.resolve() == Path(config.text).resolve():
    raise ValueError(f"out must be another file than text, got {path}")
  text, source = _find_text(config, trained, console)
  tokenizer = trained.tokenizer
  if tokenizer.unit == "character":
    # Characters that are not shown need not be known to the model.
    text = text[: config.length]
  tokens = tokenizer.encode(text)[: config.length]
  if len(tokens) < 2:
    raise ValueError(
      f"the text needs at least 2 {tokenizer.unit}s, got {len(tokens)}"
    )
  text_about = describe_text(trained, len(tokens), source)
  model = f"{directory}: {describe(trained)}"
  console.print(f"run     {model}; {text_about}", soft_wrap=True)
  return write_page(path, make_page(trained, tokens, source), console)


def _find_text(
  config: ExploreConfig, trained: Trained, console: Console
) -> tuple[str, str]:
  """Return the text to show, and where it is from."""
  if config.prompt:
    return decoded_as_utf8(config.prompt), "a prompt"
  if config.text:
    return read_text(config.text), config.text
  sha256 = trained.corpus_sha256
  data = find_corpus(Path(config.run), trained.config.data, sha256, console)
  split = SPLITS[default_split(data)]
  source = f"the {split} split of {Path(data.corpus).name}"
  return read_excerpt(data, sha256).text, source


def main() -> None:
  """Read the flags and write the page."""
  run(config_from_flags(ExploreConfig(), FLAGS), make_console())


if __name__ == "__main__":
  FLAGS = define_flags(ExploreConfig())
  launch(main, required=("run",))
