"""Print the board of results on Tiny Shakespeare, and draw its charts.

  python -m experiments.board --out=docs/results

prints the Markdown table of docs/results/tinyshakespeare.md and draws the loss
against parameters and against training time, from the records in
experiments/results/board.json.
"""

from pathlib import Path

from absl import flags

from experiments.cli import launch
from experiments.comparison.board import CHARTS, draw, read_board, table
from experiments.trainer.files import check_output

CORPUS = "tinyshakespeare"


def main() -> None:
  """Read the flags, print the table and draw."""
  board = read_board().of_corpus(CORPUS)
  if DIRECTORY.value:
    # All charts are in this directory, so that checking one path suffices.
    check_output(Path(DIRECTORY.value) / CHARTS[0].file)
  print(table(board))
  if DIRECTORY.value:
    draw(board, Path(DIRECTORY.value))


if __name__ == "__main__":
  DIRECTORY = flags.DEFINE_string(
    "out", "", "Directory to draw the charts in; empty for none."
  )
  launch(main)
