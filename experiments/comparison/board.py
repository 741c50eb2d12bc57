"""The board of results, ours and others', read from a file; table and charts.

`experiments/results/board.json` has a row for each model: what was trained, how
it was evaluated, and where the result is recorded or published. The file is the
single source of these numbers; `docs/results` shows its table and its charts,
and `experiments.reproduce` trains a row again.

The numbers beside the points of a chart are those of the rows of the table. The
points are written into the PNG file, as text, so that a test can detect a chart
that is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.trainer.corpus import REPOSITORY
from experiments.trainer.figures import SMALL, save, tidy

if TYPE_CHECKING:
  from matplotlib.figure import Figure

BOARD = REPOSITORY / "experiments" / "results" / "board.json"
ROOT = "../.."  # of the repository, seen from docs/results
# Prefix of a protocol's name: the models of all seeds are evaluated by that
# protocol together, with the mean of their probabilities.
ENSEMBLE = "ensemble_"
MARKERS = "osD^v*PX"  # one for each protocol, in order
OUR_COLOR, OTHERS_COLOR = "tab:blue", "tab:gray"
NEAR = 1.1, 0.03  # ratio of x, and nats: labels that are closer overlap
KEYWORD = "Description"  # of a PNG file's text


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

  @property
  def single_results(self) -> list[Result]:
    """The results of single runs, not of an ensemble."""
    return [r for r in self.results if not r.is_ensemble]

  def ensemble_results(self, seeds: Iterable[int]) -> list[Result]:
    """Return the ensemble results whose seeds are exactly these."""
    wanted = {*seeds}
    return [r for r in self.results if r.is_ensemble and {*r.seeds} == wanted]


class Board(NamedTuple):
  """All rows."""

  protocols: dict[str, str]  # {name: title}, in the order of the columns
  rows: list[Row]

  def of_corpus(self, corpus: str) -> Board:
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
  """Read the board."""
  data = json.loads(path.read_text("utf-8"))
  return Board(data["protocols"], [_make_row(row) for row in data["rows"]])


def _make_row(fields: dict[str, Any]) -> Row:
  kinds = {"training": Training, "source": Source}
  for name, kind in kinds.items():
    if name in fields:
      fields[name] = kind(**fields[name])
  fields["results"] = [Result(**result) for result in fields["results"]]
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


class Point(NamedTuple):
  """A result in a chart."""

  number: int  # of its row in the table
  protocol: str
  x: float
  loss: float
  deviation: float
  ours: bool


class Chart(NamedTuple):
  """A chart, by its horizontal axis.

  `value` takes a row and how many seeds a result counts (1, or all members of
  an ensemble), and returns x, or None if the row does not state it.
  """

  file: str
  title: str
  label: str
  value: Callable[[Row, int], float | None]


def _millions(row: Row, num_seeds: int) -> float | None:
  return num_seeds * (row.parameters / 1e6) if row.parameters else None


def _minutes(row: Row, num_seeds: int) -> float | None:
  """Return the minutes in which so many seeds are trained, one after another.

  A seed counts with the middle of the least and the most minutes; minutes that
  the seeds share count once.
  """
  if not row.training:
    return None
  (low, high), shared = row.training.minutes, row.training.shared
  return shared + num_seeds * ((low + high) / 2 - shared)


TIME = "minutes of training, on different machines"
CHARTS = (
  Chart("loss-by-parameters.png", "size", "parameters, millions", _millions),
  Chart("loss-by-time.png", "training time", TIME, _minutes),
)


def points(board: Board, chart: Chart) -> list[Point]:
  """Return a point for each result of the rows that have the chart's value.

  An ensemble counts the parameters and the minutes of all its members together;
  it is left out if the number of members is not known.
  """
  return [
    Point(number, r.protocol, x, r.mean, r.std or 0.0, row.is_ours)
    for number, row in enumerate(board.rows, start=1)
    for r in row.results
    if (num_seeds := len(r.seeds) if r.is_ensemble else 1)
    and (x := chart.value(row, num_seeds)) is not None
  ]


def draw(board: Board, directory: Path) -> None:
  """Draw both charts of the rows into a directory."""
  for chart in CHARTS:
    text = {KEYWORD: json.dumps(points(board, chart))}
    figure = draw_chart(board, chart)
    save(figure, directory / chart.file, dpi=100, metadata=text)


def draw_chart(board: Board, chart: Chart) -> Figure:
  """Return a chart of the rows.

  A row's number stands at its first result. Points that would hide each other's
  labels share one.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import LogLocator

  figure = Figure(figsize=(7, 4.2), layout="constrained")
  panel, found = figure.subplots(), points(board, chart)
  for number, (protocol, title) in enumerate(board.protocols.items()):
    marker = MARKERS[number % len(MARKERS)]
    for ours, color in ((True, OUR_COLOR), (False, OTHERS_COLOR)):
      chosen = [p for p in found if (p.protocol, p.ours) == (protocol, ours)]
      if chosen:
        panel.errorbar(
          [point.x for point in chosen],
          [point.loss for point in chosen],
          [point.deviation for point in chosen],
          fmt=marker,
          color=color,
          label=f"{'ours' if ours else 'others’'}, {title}",
          markersize=5,
          capsize=2,
        )
  first = {point.number: point for point in reversed(found)}
  labels: dict[Point, list[str]] = {}  # of the points that have a label
  for _, point in sorted(first.items()):
    near = (p for p in labels if _is_near(p, point))
    labels.setdefault(next(near, point), []).append(str(point.number))
  for p, numbers in labels.items():
    text = ", ".join(numbers)
    panel.annotate(
      text, (p.x, p.loss), (6, 2), textcoords="offset points", fontsize=SMALL
    )
  panel.set_xscale("log")
  panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  panel.xaxis.set_major_formatter("{x:g}")
  panel.xaxis.set_minor_formatter("")
  panel.margins(x=0.1)
  title = f"Loss by {chart.title}; the numbers are those of the table"
  tidy(panel, title, chart.label, "nats per character")
  figure.legend(
    fontsize=SMALL, ncols=2, loc="outside lower center", frameon=False
  )
  return figure


def _is_near(a: Point, b: Point) -> bool:
  """Return whether the labels of two points would overlap."""
  ratio = max(a.x, b.x) / min(a.x, b.x)
  return ratio < NEAR[0] and abs(a.loss - b.loss) < NEAR[1]
