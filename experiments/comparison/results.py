"""The results of a program in a directory: a record as JSON, and its tables.

The tables are those of a comparison of cells, as Markdown, for a README.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.analysis.recall import SYMBOLS, longest
from experiments.trainer.files import ensure_directory
from experiments.trainer.format import counted
from experiments.trainer.run_dir import CONFIG, lock

Record = dict[str, Any]  # comparison.json, or an entry in one of its lists
EQUAL_STEPS, EQUAL_TIME = "equal steps", "equal time"  # the two budgets
USUAL_BIAS, CHRONO_BIAS = "usual", "chrono"  # initial biases in recall
# The columns of two tables.
LOSS_AT = 0, 100, 1000  # training steps
GRADIENT_AT = 1, 5, 10, 20, 50, 100, 200  # time steps back


def recorded_command(program: str) -> str:
  """Return this process's command line for a record that others will read.

  Unlike that of `cli.command_line`, it never has the path of this machine's
  Python. Paths in its arguments stay as they were given.
  """
  return shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]])


@contextmanager
def opened(directory: Path) -> Iterator[None]:
  """Create a directory, and lock it until the end of the block.

  New directories are removed again if the block has written nothing there.

  Raises:
    ValueError: it is not a directory, or another process writes there.
    OSError: it cannot be created or locked.
  """
  made = [p for p in (directory, *directory.parents) if not p.exists()]
  ensure_directory(directory)
  try:
    with lock(directory):
      yield
  finally:
    with suppress(OSError):  # a directory is not empty
      for path in made:
        path.rmdir()


@contextmanager
def open_results(
  directory: Path, names: Sequence[str], overwrite: bool
) -> Iterator[None]:
  """Open the directory of a program's results, as `opened`.

  Args:
    directory: the directory.
    names: of the files that the program writes there, the record first.
    overwrite: whether results that it holds may be replaced.

  Raises:
    ValueError: the directory holds a run, or a record that may not be replaced,
      or one of the other files without a record;
      or as in `opened`.
    OSError: the directory cannot be written.
  """
  with opened(directory):
    record, *others = names
    is_there = (directory / record).exists()
    if is_there and not overwrite:
      raise ValueError(
        f"{directory} holds results already: --overwrite replaces them, "
        "another --out keeps them"
      )
    foreign = [CONFIG] if is_there else [CONFIG, *others]
    for name in foreign:
      if (directory / name).exists():
        raise ValueError(
          f"{directory} holds {name}, which is not of these results: choose "
          "another --out"
        )
    yield


@contextmanager
def naming_damaged(path: Path) -> Iterator[None]:
  """Add the record's path to the errors of a block that reads the record.

  Raises:
    ValueError: the record lacks an entry, or an entry is not what it must be.
  """
  try:
    yield
  except KeyError as error:
    raise ValueError(f"{path} is damaged: it lacks {error}") from None
  except (IndexError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error}") from None


def read_record(
  path: Path, missing: str, entries: Sequence[str] = ()
) -> dict[str, Any]:
  """Return the record of a program's results.

  Args:
    path: its file.
    missing: how the message begins if there is no such file.
    entries: names of entries that the record must have.

  Raises:
    ValueError: there is no such file, or it is not a JSON object with these
      entries.
    OSError: the file cannot be read.
  """
  if not path.is_file():
    raise ValueError(f"{missing} in {path.parent}: no {path.name}")
  with naming_damaged(path):
    record = json.loads(path.read_text("utf-8"))
  found = record if isinstance(record, dict) else {}
  lacking = [entry for entry in entries if entry not in found]
  if lacking:
    raise ValueError(f"{path} is damaged: it has no {', '.join(lacking)}")
  return record


def print_held(directory: Path, names: Sequence[str], console: Console) -> None:
  """Print which of these files a directory holds."""
  held = [name for name in names if (directory / name).exists()]
  console.print(f"\n{directory} holds {', '.join(held)}", soft_wrap=True)


def print_tables(tables: dict[str, str], console: Console) -> None:
  """Print tables, each below its title."""
  for title, table in tables.items():
    console.print(f"\n{title}\n", soft_wrap=True)
    console.print(table, soft_wrap=True)


def finished(record: Record) -> list[Record]:
  """Return the training runs of a record that did not diverge."""
  return [run for run in record["runs"] if run["evaluations"]]


def diverged(record: Record, cell: str) -> str:
  """Return the end of a cell's label: the budgets in which it diverged.

  It is "" if the cell diverged in none.
  """
  budgets = [
    run["budget"]
    for run in record["runs"]
    if run["cell"] == cell and not run["evaluations"]
  ]
  return f", diverged: {', '.join(budgets)}" if budgets else ""


def tables(record: Record) -> dict[str, str]:
  """Return {title: table} for the measurements that the record has."""
  num_seeds = record["config"]["num_seeds"]
  statistics = "mean ± standard deviation of " if num_seeds > 1 else ""
  every = {
    f"Validation loss, nats per character ({statistics}"
    f"{counted(num_seeds, 'seed')}), and text statistics of the samples after "
    "training": (
      "runs",
      _training,
    ),
    "Validation loss, nats per character, by characters of context": (
      "context",
      _context,
    ),
    "Delayed recall: accuracy by delay, in blanks (chance "
    f"{1 / SYMBOLS:.3f})": ("recall", _recall),
    "Gradient flow: ‖∂ℓ_T/∂s_t‖ / ‖∂ℓ_T/∂h_T‖ by T − t, s a part of the "
    "state, such as h or c": ("gradient_flow", _gradient_flow),
  }
  return {t: make(record) for t, (part, make) in every.items() if record[part]}


def markdown(header: list[str], rows: list[list[str]]) -> str:
  """Return a table; the first column is aligned left, the others right."""
  lines = [header, ["---", *("--:" for _ in header[1:])], *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _training(record: Record) -> str:
  losses = [
    {row["step"]: row["val_loss"] for row in run["evaluations"] or ()}
    for run in record["runs"]
  ]
  steps = [step for step in LOSS_AT if any(step in run for run in losses)]
  header = [
    "cell",
    "H",
    "parameters",
    "training steps",
    *(f"loss at step {step}" for step in steps),
    "loss at the end",
    "words in training text, %",
    "words in validation text, %",
    "line length",
    "lines that rhyme, %",
  ]
  rows = []
  for run, loss in zip(record["runs"], losses, strict=True):
    cell = record["cells"][run["cell"]]
    row = [
      f"{run['cell']}, {run['budget']}",
      str(cell["hidden_size"]),
      f"{cell['num_parameters']:,}",
      f"{run['num_steps']:,}",
      *(_mean_and_std(loss.get(step), 3) for step in steps),
    ]
    if loss:
      row.append(_mean_and_std(loss[run["num_steps"]], 4))
      row += _text_stats(run["samples"][-1])
    else:
      row += ["diverged", *[""] * 4]  # no text statistics
    rows.append(row)
  for title, text in record["corpus"]["text_statistics"].items():
    empty = [""] * (4 + len(steps))  # from H to the loss at the end
    single = {name: [value] for name, value in text.items()}
    rows.append([title, *empty, *_text_stats(single)])
  return markdown(header, rows)


def _text_stats(values: Record) -> list[str]:
  """Return the last four columns of the first table, mean ± std of seeds."""
  return [
    _mean_and_std(values["words_in_train"], 1, 100),
    _mean_and_std(values["words_in_val"], 1, 100),
    _mean_and_std(values["line_length"], 1),
    _mean_and_std(values["rhymes"], 1, 100),
  ]


def _context(record: Record) -> str:
  rows = []
  for run in record["context"]:
    means = np.mean(run["val_loss"], axis=0)
    name = f"{run['cell']}, {run['budget']}"
    rows.append([name, *(f"{mean:.3f}" for mean in means)])
  lengths = record["context"][0]["lengths"]
  below = [0, *lengths[:-1]]
  header = [
    str(last) if last == first + 1 else f"{first + 1} – {last}"
    for first, last in zip(below, lengths, strict=True)
  ]
  return markdown(["cell", *header], rows)


def _recall(record: Record) -> str:
  lines: dict[tuple[str, str], list[Record]] = {}
  for row in record["recall"]:
    lines.setdefault((row["cell"], row["forget_bias"]), []).append(row)
  rows = []
  for (cell, bias), own in lines.items():
    means = {row["delay"]: float(np.mean(row["accuracy"])) for row in own}
    size, parameters = own[0]["hidden_size"], own[0]["num_parameters"]
    rows.append(
      [
        f"{cell}, H {size}, {parameters:,} parameters",
        bias,  # "usual" or "chrono"
        *(f"{mean:.2f}" for mean in means.values()),
        str(longest(means) or "none"),
      ]
    )
  delays = [str(delay) for delay in record["config"]["delay"]]
  header = ["cell", "initial biases", *delays, "above 0.9 up to delay"]
  return markdown(header, rows)


def _gradient_flow(record: Record) -> str:
  last = record["config"]["gradient_steps"]
  steps = [step for step in GRADIENT_AT if step <= last]
  rows = []
  for row in record["gradient_flow"]:
    first = row["norms"]["h"][0]
    for field, norms in row["norms"].items():
      name = f"{row['cell']}, {field}, {row['stage']}"
      rows.append([name, *(_ratio(norms[step], first) for step in steps)])
  return markdown(["cell", *(str(step) for step in steps)], rows)


def _ratio(norm: float | None, first: float | None) -> str:
  """Return the ratio norm / first as a text, or "–" if it cannot be computed.

  `norm` is ‖∂ℓ/∂sₜ‖ and `first` ‖∂ℓ/∂h_T‖; None if not finite in float32.
  """
  return "–" if norm is None or not first else f"{norm / first:.1e}"


def _mean_and_std(values: list | None, digits: int, factor: float = 1) -> str:
  """Return mean ± standard deviation of the values that are not None."""
  known = [factor * value for value in values or [] if value is not None]
  if not known:
    return "–"
  mean = f"{np.mean(known):.{digits}f}"
  if len(known) == 1:
    return mean
  return f"{mean} ± {np.std(known, ddof=1):.{digits}f}"
