"""Markdown tables of a comparison, ready to paste into a README."""

from typing import Any

import numpy as np

from experiments.analysis.recall import SYMBOLS, longest
from experiments.analysis.text_stats import TextStats
from experiments.comparison.results import check_length
from experiments.trainer.files import check_numbers
from experiments.trainer.format import counted

Record = dict[str, Any]
# The columns of two tables.
LOSS_AT = 0, 100, 1000  # training steps
GRADIENT_AT = 1, 5, 10, 20, 50, 100, 200  # time steps back


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


def check_entries(record: Record) -> None:
  """Raise ValueError unless the entries of a record fit each other.

  The lists must have the lengths that the configuration gives them; the losses
  by context, the length of their row's `lengths`. Values that are not numbers
  are refused here where `tables` would accept them, but `plots` would fail.
  """
  config = record["config"]
  num_seeds, num_norms = config["num_seeds"], config["gradient_steps"] + 1
  for cell in record["cells"].values():
    check_numbers("seconds_per_step", [cell["seconds_per_step"]])
  for run in record["runs"]:
    for row in run["evaluations"] or ():
      check_length("val_loss", row["val_loss"], num_seeds)
      check_numbers("step and val_loss", [row["step"], *row["val_loss"]])
    for row in run["samples"] or ():
      check_numbers("step", [row["step"]])
      for name in TextStats._fields:
        check_length(name, row[name], num_seeds)
        check_numbers(name, [x for x in row[name] if x is not None])
  for row in record["context"]:
    check_length("val_loss", row["val_loss"], num_seeds)
    for losses in row["val_loss"]:
      check_length("val_loss", losses, len(row["lengths"]))
  for row in record["gradient_flow"]:
    for name, norms in row["norms"].items():
      check_length(f"norms of {name}", norms, num_norms)
      check_numbers(f"norms of {name}", [x for x in norms if x is not None])
  delays: dict[tuple[str, str], list[int]] = {}
  for row in record["recall"]:
    check_length("accuracy", row["accuracy"], num_seeds)
    delays.setdefault(_recall_kind(row), []).append(row["delay"])
  for (cell, bias), found in delays.items():
    if found != config["delay"]:
      raise ValueError(
        f"the delays of {cell}, {bias}, must be {config['delay']}, got {found}"
      )


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
  rows = []
  for cell, bias in dict.fromkeys(map(_recall_kind, record["recall"])):
    own = [row for row in record["recall"] if _recall_kind(row) == (cell, bias)]
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


def _recall_kind(row: Record) -> tuple[str, str]:
  return row["cell"], row["forget_bias"]


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
