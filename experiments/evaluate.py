"""Evaluate a trained model on text that it was not trained on.

  python -m experiments.evaluate --run=FOLDER

prints the loss of every prediction in the run's held-out split by three
protocols (`lstm_jax.language.evaluate`): cold windows of 256, one stateful
pass, and dynamic evaluation, whose rate, decay and segments are chosen on text
that comes before the held-out split: the run's development text, or else the
end of what it was trained on. Other parts of the corpus, such as the middle of
a 90/5/5 split, are given by --begin and --end. The figures are kept in the
run's folder, in evaluation.json, beside those of other protocols on the same
text. Beside the loss of each token stands that of each character, for which a
model over words also pays the spelling of words that it does not know: by that
figure it compares with a model over characters.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.analysis import dynamic_eval
from experiments.cli import finite, launch, plain_console
from experiments.trainer import run_dir
from experiments.trainer.data import sha256_of
from experiments.trainer.extract import Extract, extract
from lstm_jax.language import Tokenizer
from lstm_jax.language.evaluate import (
  cold_nats,
  nats_per_character,
  stateful_nats,
)
from lstm_jax.language.word_tokenizer import normal

PROTOCOLS = "cold", "stateful", "dynamic"
SAME = "corpus_sha256", "begin", "end", "update"  # of figures side by side


def run(
  run: str,
  corpus: str,
  begin: float | None,
  end: float,
  protocol: list[str],
  window: int,
  segment: int | None,
  rate: float | None,
  decay: float | None,
  console: Console,
) -> dict[str, Any]:
  """Evaluate, print and record; return the record.

  What one protocol has found is printed and recorded where a later one fails.

  Raises:
    ValueError: the run or the corpus is not usable, or a number is out of its
      range, or the weights that go on learning diverge.
  """
  trained = run_dir.load(Path(run))
  part = extract(Path(run), corpus, begin, end)
  vocabulary = trained.vocabulary
  text = vocabulary.encode(part.text)
  before = vocabulary.encode(part.before)
  given = dynamic_eval.Given(rate, decay, segment)
  if "dynamic" in protocol:
    dynamic_eval.check_before(len(before), given)
  _introduce(run, trained, part, text, console)
  record = _heading(trained, part, text)
  rows: list[tuple[str, float, float]] = []
  try:
    for name in PROTOCOLS:
      if name not in protocol:
        continue
      title = name
      if name == "cold":
        title = f"cold windows of {window}"
        nats = cold_nats(trained.model, trained.params, text, window)
        record["window"] = window
      elif name == "stateful":
        nats = stateful_nats(trained.model, trained.params, text)
      else:
        how, nats = dynamic_eval.evaluate_dynamically(
          trained, before, text, given, console
        )
        title = f"dynamic, rate {how.rate:g}, decay {how.decay:g}"
        record["dynamic"] = how._asdict()
      mean = float(nats.mean())
      spelt = nats_per_character(vocabulary, part.text, float(nats.sum()))
      record["nats"][name] = mean
      record["nats_per_character"][name] = spelt
      rows.append((title, mean, spelt))
  finally:
    if rows:
      console.print(_table(vocabulary.unit, rows))
      path = Path(run) / run_dir.EVALUATION
      run_dir.write_json(path, _with_earlier(path, record))
      console.print(f"saved in {path}", soft_wrap=True)
  return record


def _introduce(
  run: str,
  trained: run_dir.Trained,
  part: Extract,
  tokens: np.ndarray,
  console: Console,
) -> None:
  """Say what is evaluated."""
  console.print(
    f"run     {run}, of update {trained.step}\n"
    f"text    {part.corpus}: characters {part.first:,} to {part.last:,} of "
    f"{len(part.whole):,}",
    soft_wrap=True,
  )
  vocabulary, text = trained.vocabulary, part.text
  if vocabulary.unknown_tokens:
    unknown = np.isin(tokens[1:], vocabulary.unknown_tokens).mean()
    spelling = _spelling(vocabulary, text) / (len(text) - 1)
    console.print(
      f"words   {len(tokens):,}, of them {unknown:.2%} unknown, whose spelling "
      f"costs {spelling:.4f} nats per character;\n"
      f"        {len(text) - len(normal(text)):,} blanks are not in their "
      "normal form and cost nothing",
      soft_wrap=True,
    )


def _spelling(vocabulary: Tokenizer, text: str) -> float:
  """Return what it costs to spell the unknown words that are predicted."""
  return float(vocabulary.spelling(text)[1:].sum())


def _heading(
  trained: run_dir.Trained, part: Extract, tokens: np.ndarray
) -> dict[str, Any]:
  """Return the record without figures."""
  return {
    "corpus": part.corpus,
    "corpus_sha256": sha256_of(part.whole),
    "update": trained.step,
    "begin": part.begin,
    "end": part.end,
    "tokens": trained.vocabulary.unit,
    "predictions": len(tokens) - 1,
    "characters": len(part.text) - 1,
    "spelling": _spelling(trained.vocabulary, part.text),
    "device": run_dir.device_name(),
    "nats": {},
    "nats_per_character": {},
  }


def _table(unit: str, rows: list[tuple[str, float, float]]) -> Table:
  """Return a table of (protocol, nats per token, nats per character)."""
  table = Table(box=SIMPLE_HEAD, pad_edge=False)
  table.add_column("protocol")
  units = dict.fromkeys((unit, "character"))
  for name in (*(f"nats/{u[:4]}" for u in units), "bits/char", "perplexity"):
    table.add_column(name, justify="right", no_wrap=True)
  for title, mean, spelt in rows:
    losses = {unit: mean, "character": spelt}
    table.add_row(
      title,
      *(f"{losses[u]:.4f}" for u in units),
      f"{spelt / math.log(2):.4f}",
      f"{math.exp(mean):.3f}",
    )
  return table


def _with_earlier(path: Path, record: dict[str, Any]) -> dict[str, Any]:
  """Return the record, and what the file has of other protocols on the same."""
  try:
    earlier = json.loads(path.read_text("utf-8"))
    if any(earlier[name] != record[name] for name in SAME):
      return record
    both = earlier | record
    for name in ("nats", "nats_per_character"):
      both[name] = earlier[name] | record[name]
  except (OSError, ValueError, KeyError, TypeError):  # none, or no evaluation
    return record
  return both


def _flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string("run", None, "Folder of the run.", required=True),
    flags.DEFINE_string("corpus", "", "The text; empty for the run's own."),
    finite(
      flags.DEFINE_float(
        "begin",
        None,
        "Share of the corpus at which evaluation begins; if not given, where "
        "the run's held-out split does.",
        lower_bound=0.0,
      )
    ),
    finite(
      flags.DEFINE_float(
        "end", 1.0, "Share of the corpus at which it ends.", lower_bound=0.0
      )
    ),
    flags.DEFINE_multi_enum(
      "protocol", list(PROTOCOLS), PROTOCOLS, "Repeat for several."
    ),
    flags.DEFINE_integer("window", 256, "Tokens of a cold window.", 1),
    flags.DEFINE_integer(
      "segment",
      None,
      "Tokens that dynamic evaluation reads at once; chosen if not given.",
      1,
    ),
    finite(
      flags.DEFINE_float(
        "rate", None, "Its learning rate; chosen if not given.", 0.0
      )
    ),
    finite(
      flags.DEFINE_float(
        "decay",
        None,
        "Its pull back to the first weights, in [0, 1]; chosen if not given.",
        0.0,
        1.0,
      )
    ),
  ]


def main() -> None:
  """Read the flags and evaluate."""
  run(**{flag.name: flag.value for flag in FLAGS}, console=plain_console())


if __name__ == "__main__":
  FLAGS = _flags()
  launch(main)
