"""Evaluate a trained model on text that it was not trained on.

  python -m experiments.evaluate --run=DIRECTORY

prints the mean loss on the run's development split, if it has one, or else on
its test split, or else on its validation split, by three protocols
(`lstm_jax.language.evaluate`):

  cold      windows of 256 tokens, each read from the zero state
  stateful  one pass over the whole text
  dynamic   dynamic evaluation: the weights adapt to the text already read

The rate, decay and segment length of dynamic evaluation are chosen on the text
before the split. --split names another split; --begin and --end select other
parts of the corpus. --checkpoint=last evaluates the last weights of a finished
run, which no loss has chosen. The results are saved in the run directory, in
evaluation.json, beside those of other protocols on the same text. The table has
the loss per token and per character. The loss per character of a word model
includes the spelling of unknown words, so that it can be compared with that of
a character model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.analysis import dynamic_eval
from experiments.cli import launch, make_console
from experiments.trainer import run_dir
from experiments.trainer.corpus_path import find_corpus, published_path
from experiments.trainer.data import SPLITS, text_sha256
from experiments.trainer.effects import EVALUATE_RULES, without_effect
from experiments.trainer.environment import device_name
from experiments.trainer.excerpt import Excerpt, Part, read_excerpt
from experiments.trainer.files import write_json
from experiments.trainer.flags import config_from_flags, define_flags
from experiments.trainer.format import number_table
from experiments.trainer.trained import BEST, CHECKPOINTS, Trained, load
from lstm_jax.language import Tokenizer
from lstm_jax.language.evaluate import (
  cold_nats,
  nats_per_character,
  stateful_nats,
)
from lstm_jax.language.options import check_options, option
from lstm_jax.language.word_tokenizer import normalize

PROTOCOLS = "cold", "stateful", "dynamic"
# Entries that are equal for all results in one evaluation.json.
SAME = "corpus_sha256", "begin", "end", "step", "device"


@dataclass(frozen=True)
class EvaluateConfig:
  """A run, a part of a text, and the protocols; each field is a flag."""

  run: str = option("", "Run directory.")
  corpus: str = option(
    "", "Text to evaluate on; empty for the run's own corpus."
  )
  split: str | None = option(
    None,
    "The split of the run's corpus to evaluate; if not given, its development "
    "split, or else its test split, or else its validation split.",
    choices=tuple(SPLITS),
  )
  begin: float | None = option(
    None,
    "Share of the corpus where the evaluated part begins, in place of --split. "
    "In another text, where the test or the validation split of the run's "
    "corpus does, if it is not given.",
    bounds="[0, 1)",
  )
  end: float | None = option(
    None,
    "Share of the corpus where it ends; if not given, at the end of the text "
    "or of the split.",
    bounds="(0, 1]",
  )
  checkpoint: str = option(
    BEST,
    "The weights: of the lowest validation loss, or the last of a finished "
    "run. Both are the averaged ones, if the run averages.",
    choices=CHECKPOINTS,
  )
  protocol: tuple[str, ...] = option(
    PROTOCOLS, "Protocol; may be repeated.", choices=PROTOCOLS
  )
  window: int = option(256, "Tokens of a cold window.", bounds="[1, inf)")
  segment: int | None = option(
    None,
    "Tokens between updates of dynamic evaluation; chosen if not given.",
    bounds="[1, inf)",
  )
  rate: float | None = option(
    None,
    "Learning rate of dynamic evaluation; chosen if not given.",
    bounds="[0, inf)",
  )
  decay: float | None = option(
    None,
    "Decay of dynamic evaluation towards the trained weights, in [0, 1]; "
    "chosen if not given.",
    bounds="[0, 1]",
  )

  def __post_init__(self):
    check_options(self)


class Row(NamedTuple):
  """The result of one protocol, a row of the table."""

  title: str
  nats: float  # per token
  nats_per_character: float


def run(config: EvaluateConfig, console: Console) -> dict[str, Any]:
  """Evaluate, print and save the results; return the record of them.

  If a protocol fails, the results of those before it are printed and saved.

  Raises:
    ValueError: the run or the corpus is not usable, a number is out of its
      range, or dynamic evaluation diverges.
  """
  directory = Path(config.run)
  trained = load(directory, config.checkpoint)
  data, sha256 = trained.config.data, trained.corpus_sha256
  if not config.corpus:
    data = find_corpus(directory, data, sha256, console)
  part = Part(config.split, config.begin, config.end)
  excerpt = read_excerpt(data, sha256, config.corpus, part)
  tokenizer, model, params = trained.tokenizer, trained.model, trained.params
  tokens = tokenizer.encode(excerpt.text)
  before = tokenizer.encode(excerpt.before)
  fixed = dynamic_eval.FixedSettings(config.rate, config.decay, config.segment)
  if "dynamic" in config.protocol:
    dynamic_eval.check_text_before(len(before), fixed)
  _print_heading(config.run, trained, excerpt, tokens, console)
  for line in without_effect(config, EVALUATE_RULES).values():
    console.print(f"warning {line}", soft_wrap=True)
  corpus = trained.config.data.corpus
  if config.corpus:
    corpus = published_path(config.corpus)
  record = _make_record(trained, corpus, excerpt, tokens)
  record["checkpoint"] = config.checkpoint
  rows: list[Row] = []
  try:
    for name in PROTOCOLS:
      if name not in config.protocol:
        continue
      title = name
      if name == "cold":
        title = f"cold windows of {config.window}"
        nats = cold_nats(model, params, tokens, config.window)
        record["window"] = config.window
      elif name == "stateful":
        nats = stateful_nats(model, params, tokens)
      else:
        choice, nats = dynamic_eval.evaluate_dynamically(
          model, params, before, tokens, fixed
        )
        _print_choice(choice, console)
        best = choice.config
        title = f"dynamic, rate {best.rate:g}, decay {best.decay:g}"
        record["dynamic"] = best._asdict()
      mean, total = float(nats.mean()), float(nats.sum())
      per_character = nats_per_character(tokenizer, excerpt.text, total)
      record["nats"][name] = mean
      record["nats_per_character"][name] = per_character
      rows.append(Row(title, mean, per_character))
  finally:
    if rows:
      console.print(_make_table(tokenizer.unit, rows))
      path = directory / run_dir.EVALUATION
      write_json(path, _merge_earlier(path, record))
      console.print(f"saved in {path}", soft_wrap=True)
  return record


def _print_heading(
  run: str,
  trained: Trained,
  excerpt: Excerpt,
  tokens: np.ndarray,
  console: Console,
) -> None:
  console.print(
    f"run     {run}, after step {trained.step}\n"
    f"text    {excerpt.path}: characters {excerpt.first:,} to "
    f"{excerpt.last:,} of {len(excerpt.whole):,}",
    soft_wrap=True,
  )
  tokenizer, text = trained.tokenizer, excerpt.text
  if tokenizer.unknown_tokens:
    unknown = np.isin(tokens[1:], tokenizer.unknown_tokens).mean()
    spelling = _spelling_nats(tokenizer, text) / (len(text) - 1)
    console.print(
      f"words   {len(tokens):,}, {unknown:.2%} of them unknown, whose spelling "
      f"costs {spelling:.4f} nats per character;\n"
      f"        {len(text) - len(normalize(text)):,} blanks are dropped by the "
      "normal form and cost nothing",
      soft_wrap=True,
    )


def _print_choice(choice: dynamic_eval.Choice, console: Console) -> None:
  if choice.val_loss is None:
    return
  config = choice.config
  console.print(
    f"dynamic evaluation: rate {config.rate:g}, decay {config.decay:g} and "
    f"segments of {config.segment} are the best of {choice.num_tried} settings "
    f"on the {choice.num_tokens:,} tokens before: {choice.val_loss:.4f} nats",
    soft_wrap=True,
  )


def _spelling_nats(tokenizer: Tokenizer, text: str) -> float:
  """Return what it costs to spell the unknown words that are predicted."""
  return float(tokenizer.spelling_nats(text)[1:].sum())


def _make_record(
  trained: Trained, corpus: str, excerpt: Excerpt, tokens: np.ndarray
) -> dict[str, Any]:
  """Return the record of an evaluation, without results."""
  return {
    "corpus": corpus,
    "corpus_sha256": text_sha256(excerpt.whole),
    "step": trained.step,
    "split": excerpt.split,
    "begin": excerpt.begin,
    "end": excerpt.end,
    "tokenizer": trained.tokenizer.unit,
    "predictions": len(tokens) - 1,
    "characters": len(excerpt.text) - 1,
    "spelling": _spelling_nats(trained.tokenizer, excerpt.text),
    "device": device_name(),
    "nats": {},
    "nats_per_character": {},
  }


def _make_table(unit: str, rows: list[Row]) -> Table:
  units = dict.fromkeys((unit, "character"))
  nats = (f"nats/{u[:4]}" for u in units)
  table = number_table("protocol", *nats, "bits/char", "perplexity")
  for row in rows:
    losses = {unit: row.nats, "character": row.nats_per_character}
    table.add_row(
      row.title,
      *(f"{losses[u]:.4f}" for u in units),
      f"{row.nats_per_character / math.log(2):.4f}",
      f"{math.exp(row.nats):.3f}",
    )
  return table


def _merge_earlier(path: Path, record: dict[str, Any]) -> dict[str, Any]:
  """Return the record, with the file's results of other protocols.

  The file is ignored if it is of another text, part, step or device.
  """
  try:
    earlier = json.loads(path.read_text("utf-8"))
    if any(earlier[name] != record[name] for name in SAME):
      return record
    merged = earlier | record
    for name in ("nats", "nats_per_character"):
      merged[name] = earlier[name] | record[name]
  except (OSError, ValueError, KeyError, TypeError):  # no file, or another's
    return record
  return merged


def main() -> None:
  """Read the flags and evaluate."""
  run(config_from_flags(EvaluateConfig(), FLAGS), make_console())


if __name__ == "__main__":
  FLAGS = define_flags(EvaluateConfig())
  launch(main, required=("run",))
