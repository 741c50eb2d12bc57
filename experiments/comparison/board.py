"""The board of results, ours and others', read from a file; and its table.

`experiments/results/board.json` has a row for each model: what was trained, how
it was evaluated, and where the result is recorded or published. The file is the
single source of these numbers; `docs/results` shows its table and its charts,
and `experiments.reproduce` trains a row again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.trainer.corpus import REPOSITORY

BOARD = REPOSITORY / "experiments" / "results" / "board.json"
ROOT = "../.."  # of the repository, seen from docs/results
# Prefix of a protocol's name: the models of all seeds are evaluated by that
# protocol together, with the mean of their probabilities.
ENSEMBLE = "ensemble_"


class Result(NamedTuple):
  """The loss of a row by one protocol, in nats per character."""

  protocol: str
  mean: float
  # Over the seeds; None for one seed, for an ensemble, or if unknown.
  std: float | None = None
  seeds: Sequence[int] = ()  # empty if unknown
  values: Sequence[float] = ()  # of each seed; empty for an ensemble too
  note: str = ""  # what differs from the protocol

  @property
  def is_ensemble(self) -> bool:
    """Whether the loss is of the mean of all seeds' probabilities."""
    return self.protocol.startswith(ENSEMBLE)

  @property
  def evaluated_by(self) -> str:
    """The protocol of experiments.evaluate, for one run or an ensemble."""
    return self.protocol.removeprefix(ENSEMBLE)


class Training(NamedTuple):
  """What the training of one seed costs."""

  minutes: Sequence[float]  # [least, most]
  machine: str
  shared: float = 0.0  # of these minutes, those spent once for all seeds


class Source(NamedTuple):
  """Where others have published a result."""

  title: str
  url: str


class Row(NamedTuple):
  """A trained model and its losses, ours or others'."""

  name: str
  corpus: str
  model: str
  results: Sequence[Result]
  settings: str  # how the hyperparameters and the checkpoint were chosen
  parameters: int | None = None
  training: Training | None = None
  recipe: str = ""  # of experiments/recipes; empty for others' rows
  flags: Sequence[str] = ()  # of experiments.train, besides the recipe's
  evaluate: Sequence[str] = ()  # flags of experiments.evaluate
  date: str = ""  # of the last commit
  commits: Sequence[str] = ()  # that added the results, or the last of them
  records: Sequence[str] = ()  # the run directory that each commit changed
  source: Source | None = None  # of others' rows

  @property
  def is_ours(self) -> bool:
    """Whether a recipe trains it."""
    return bool(self.recipe)

  def result(self, protocol: str) -> Result | None:
    """Return the result by a protocol, if there is one."""
    found = (r for r in self.results if r.protocol == protocol)
    return next(found, None)


class Board(NamedTuple):
  """All rows."""

  protocols: dict[str, str]  # {name: title}, in the order of the columns
  rows: list[Row]

  def of_corpus(self, corpus: str) -> "Board":
    """Return the rows on one corpus, in the order of their losses.

    Rows with a result by the board's first protocol come first, the lowest mean
    at the top. Then come those of the other rows that have a result by its
    second protocol, and so on.
    """
    order = list(self.protocols)

    def place(row: Row) -> tuple[int, float]:
      return min((order.index(r.protocol), r.mean) for r in row.results)

    rows = [row for row in self.rows if row.corpus == corpus]
    return Board(self.protocols, sorted(rows, key=place))

  def find(self, name: str) -> Row:
    """Return our row with this name.

    Raises:
      ValueError: no row of ours has it.
    """
    ours = {row.name: row for row in self.rows if row.is_ours}
    if name not in ours:
      raise ValueError(
        f"the name must be one of {', '.join(ours)}, got {name!r}"
      )
    return ours[name]


def read_board(path: Path = BOARD) -> Board:
  """Read the board.

  Raises:
    ValueError: a row lacks a field, has an unknown one, has the name of another
      row, no results, or a result by a protocol that the board does not list.
  """
  data = json.loads(path.read_text("utf-8"))
  rows = []
  for fields in data["rows"]:
    try:
      rows.append(_make_row(dict(fields)))
    except TypeError as error:
      raise ValueError(
        f"row {fields.get('name')!r} of {path}: {error}"
      ) from None
  board = Board(data["protocols"], rows)
  names = [row.name for row in rows]
  for row in rows:
    if names.count(row.name) > 1:
      raise ValueError(f"row {row.name!r} of {path}: another row has its name")
    if not row.results:
      raise ValueError(f"row {row.name!r} of {path}: it has no results")
    for result in row.results:
      if result.protocol not in board.protocols:
        raise ValueError(
          f"row {row.name!r} of {path}: protocol must be one of "
          f"{', '.join(board.protocols)}, got {result.protocol!r}"
        )
  return board


def _make_row(fields: dict[str, Any]) -> Row:
  if "results" in fields:
    fields["results"] = [Result(**result) for result in fields["results"]]
  if "training" in fields:
    fields["training"] = Training(**fields["training"])
  if "source" in fields:
    fields["source"] = Source(**fields["source"])
  return Row(**fields)


def table(board: Board) -> str:
  """Return a Markdown table of the rows, for a page in docs/results.

  A protocol has a column if any row has a result by it. The lowest mean of each
  column is bold.
  """
  used = [p for p in board.protocols if any(r.result(p) for r in board.rows)]
  best = {
    p: min(r.mean for row in board.rows if (r := row.result(p))) for p in used
  }
  header = ["#", "record", "parameters", *(board.protocols[p] for p in used)]
  header += ["seeds", "training", "settings", "command or source", "commit"]
  lines = [header, ["---"] * len(header)]
  for number, row in enumerate(board.rows, start=1):
    losses = [_loss(row.result(p), best[p]) for p in used]
    lines.append(
      [
        f"{number}",
        f"**{row.name}**: {row.model}" if row.is_ours else row.model,
        f"{row.parameters / 1e6:.4g} M" if row.parameters else "–",
        *losses,
        str(max(len(r.seeds) for r in row.results) or "–"),
        _cost(row.training),
        row.settings,
        _origin(row),
        _commits(row),
      ]
    )
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _loss(result: Result | None, best: float) -> str:
  if result is None:
    return "–"
  text = f"{result.mean}"  # with as many digits as its source gives
  if result.std is not None:
    text = f"{result.mean:.4f} ± {result.std:.4f}"
  text = f"**{text}**" if result.mean == best else text
  return text + (f" ({result.note})" if result.note else "")


def _cost(training: Training | None) -> str:
  if training is None:
    return "–"
  return f"{format_minutes(training.minutes)} min, {training.machine}"


def format_minutes(minutes: Sequence[float]) -> str:
  """Return the least and the most minutes, as "9 to 12.5", or "8" if equal."""
  return " to ".join(f"{one:g}" for one in dict.fromkeys(minutes))


def _origin(row: Row) -> str:
  if row.source:
    return f"{row.name} ([{row.source.title}]({row.source.url}))"
  recipe = f"{ROOT}/experiments/recipes/{row.recipe}.flags"
  return f"`experiments.reproduce {row.name}` ([recipe]({recipe}))"


def _commits(row: Row) -> str:
  """Return the commits, each with a link to the record that it changed."""
  if not row.commits:
    return "–"
  pairs = zip(row.commits, row.records, strict=True)
  links = ", ".join(f"[{c}]({ROOT}/{record})" for c, record in pairs)
  return f"{links} ({row.date})"
