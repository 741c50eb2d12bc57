"""Print the board of results on Tiny Shakespeare, and draw its charts.

  python -m experiments.board --charts=docs/results

prints the Markdown table of docs/results/tinyshakespeare.md and draws the loss
against parameters and against training time, from the records in
experiments/results/board.json.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.cli import launch
from experiments.comparison.board import read_board, table
from experiments.comparison.board_charts import CHARTS, draw
from experiments.trainer.files import check_parent
from experiments.trainer.flags import config_from_flags, define_flags
from lstm_jax.language.options import option

CORPUS = "tinyshakespeare"


@dataclass(frozen=True)
class BoardConfig:
  """Where the charts are drawn; the field is a flag."""

  charts: str = option("", "Directory to draw the charts in; empty for none.")


def main() -> None:
  """Read the flags, print the table and draw."""
  config = config_from_flags(BoardConfig(), FLAGS)
  board = read_board().of_corpus(CORPUS)
  if config.charts:
    check_parent(Path(config.charts) / CHARTS[0].file)
  print(table(board))
  if config.charts:
    draw(board, Path(config.charts))


if __name__ == "__main__":
  FLAGS = define_flags(BoardConfig())
  launch(main)
