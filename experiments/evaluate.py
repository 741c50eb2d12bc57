"""Evaluate a trained model on text that it was not trained on.

  python -m experiments.evaluate --run=DIRECTORY

prints the mean loss on the run's development split, if it has one, or else on
its test split, or else on its validation split, by the first three of these
protocols, or by those that --protocol names (`lstm_jax.language.evaluate`,
`experiments.analysis.mixing`):

  cold            windows of 256 tokens, each read from the zero state
  stateful        one pass over the whole text
  dynamic         dynamic evaluation: the weights adapt to the text already read
  mixed           dynamic, mixed with n-gram models that read the same text
  mixed_stateful  stateful, mixed likewise

Several --run form an ensemble: the mean of their probabilities is evaluated.

The rate, decay and segment length of dynamic evaluation are chosen on the text
before the split. The counts of one n-gram model start from the training text
(in another --corpus, from its text before the part), those of another from
nothing, and the weights of the mixture are learned from the text already read.
--split names another split; --begin and --end select other parts of the corpus.
--checkpoint=last evaluates the last weights of a finished run, which no loss
has chosen. The results are saved in the run directory, in evaluation.json (of
an ensemble, in ensemble.json of the first run). The file keeps the results of
other protocols for the same weights, part of the text and device, and loses any
others. The table has the loss per token and per character. The latter includes,
for a word model, the spelling of unknown words, as a character model's does.
Except in cold windows, a word spelled before costs less.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.analysis import dynamic_eval
from experiments.analysis.mixing import check_mixable
from experiments.analysis.protocols import (
  MIXED,
  PROTOCOLS,
  Member,
  Settings,
  Texts,
  outcomes,
)
from experiments.cli import launch, make_console
from experiments.trainer import run_dir
from experiments.trainer.corpus import (
  find_corpus,
  recorded_corpus,
  recorded_path,
  text_sha256,
)
from experiments.trainer.data import SPLITS, Excerpt, read_excerpt
from experiments.trainer.distributed import num_cores
from experiments.trainer.environment import device_name
from experiments.trainer.evaluation import (
  FIGURES,
  Row,
  make_table,
  save,
  started_at,
)
from experiments.trainer.format import print_table
from experiments.trainer.records import config_from_flags, define_flags
from experiments.trainer.trained import BEST, LAST, Trained, cost, load_members
from lstm_jax.language.evaluate import check_tokens
from lstm_jax.language.options import check_options, option
from lstm_jax.language.word_tokenizer import normalize

DEFAULT = "cold", "stateful", "dynamic"


@dataclass(frozen=True)
class EvaluateConfig:
  """Runs, a part of a text, and the protocols; each field is a flag."""

  run: tuple[str, ...] = option(
    (),
    "Run directory; several form an ensemble of averaged probabilities.",
  )
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
    "With --corpus, its default is the share where the test split of the run's "
    "own corpus begins, or else its validation split.",
    bounds="[0, 1)",
  )
  end: float | None = option(
    None,
    "Share of the corpus where the evaluated part ends; if not given, the end "
    "of the text or of the split.",
    bounds="(0, 1]",
  )
  checkpoint: str = option(
    BEST,
    "The weights: of the lowest validation loss, or the last of a finished "
    "run. Both are the averaged ones, if the run averages.",
    choices=(BEST, LAST),
  )
  protocol: tuple[str, ...] = option(
    DEFAULT, "Protocol; may be repeated.", choices=PROTOCOLS
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


def run(config: EvaluateConfig, console: Console) -> dict[str, Any]:
  """Evaluate, print and save the results; return the record of them.

  If a protocol fails, the results of those before it are printed and saved.

  Raises:
    ValueError: a run or the corpus is not usable, the runs differ in corpus,
      vocabulary or splits, the text or the tokenizer does not fit a protocol, a
      number is out of range, dynamic evaluation diverges, or a run is replaced.
  """
  directories = [Path(name) for name in config.run]
  started = {path: started_at(path) for path in directories}
  members = load_members(directories, config.checkpoint)
  trained, directory = members[0], directories[0]
  path = directory / (run_dir.ENSEMBLE if members[1:] else run_dir.EVALUATION)
  data, sha256 = trained.config.data, trained.corpus_sha256
  if not config.corpus:
    data = find_corpus(directory, data, sha256, console)
  part = config.split, config.begin, config.end
  excerpt = read_excerpt(data, sha256, config.corpus, *part)
  tokenizer = trained.tokenizer
  adapts = bool({"dynamic", "mixed"} & {*config.protocol})
  mixes = bool({*MIXED} & {*config.protocol})
  # Only encode what a protocol reads: the rest may have unknown characters.
  texts = Texts(
    excerpt.encode(tokenizer, excerpt.first, excerpt.last),
    excerpt.encode(tokenizer, 0, excerpt.first if adapts else 0),
    [excerpt.encode(tokenizer, *span) for span in excerpt.training if mixes],
  )
  check_tokens(texts.tokens, tokenizer.size)
  fixed = dynamic_eval.FixedSettings(config.rate, config.decay, config.segment)
  if adapts:
    dynamic_eval.check_text_before(len(texts.before), fixed)
  if mixes:
    check_mixable(tokenizer, len(texts.tokens))

  @functools.cache
  def spelling_nats(cached: bool) -> float:
    """Return unknown words' cost; if cached, a repeated one costs less."""
    return float(tokenizer.spelling_nats(excerpt.text, cached)[1:].sum())

  record = _make_record(config, members, excerpt, len(texts.tokens))
  _print_heading(
    config, members, excerpt, texts.tokens, spelling_nats, record, console
  )
  results = outcomes(
    [Member(one.model, one.params) for one in members],
    texts,
    Settings(config.window, fixed, num_cores()),
    config.protocol,
  )
  rows: list[Row] = []
  try:
    for name, outcome in results:
      for choice in outcome.choices:
        if how := choice.description():
          console.print(how, soft_wrap=True)
      mean, total = float(outcome.nats.mean()), float(outcome.nats.sum())
      spelling = spelling_nats(name != "cold")
      per_character = (total + spelling) / (len(excerpt.text) - 1)
      rows.append(Row(outcome.title, mean, per_character, spelling))
      for figure, value in rows[-1].figures.items():
        record[figure][name] = value
      record |= outcome.record
  finally:
    if rows:
      print_table(make_table(tokenizer.unit, rows), console)
      save(path, record, started)
      console.print(f"saved in {path}", soft_wrap=True)
  return record


def _print_heading(
  config: EvaluateConfig,
  members: list[Trained],
  excerpt: Excerpt,
  tokens: np.ndarray,
  spelling_nats: Callable[[bool], float],
  record: dict[str, Any],
  console: Console,
) -> None:
  for name, member in zip(config.run, members, strict=True):
    console.print(f"run     {name}, after step {member.step}", soft_wrap=True)
  seconds = record["training_seconds"]
  training = "" if seconds is None else f", {seconds:,.0f} s of training"
  console.print(
    f"members {len(members)}, {record['parameters']:,} parameters{training}\n"
    f"text    {excerpt.path}: characters {excerpt.first:,} to "
    f"{excerpt.last:,} of {len(excerpt.whole):,}",
    soft_wrap=True,
  )
  tokenizer, text = members[0].tokenizer, excerpt.text
  if tokenizer.unknown_tokens:
    unknown = np.isin(tokens[1:], tokenizer.unknown_tokens).mean()
    anew, cached = (spelling_nats(c) / (len(text) - 1) for c in (False, True))
    console.print(
      f"words   {len(tokens):,}, {unknown:.2%} of them unknown, whose spelling "
      f"costs {cached:.4f} nats per character,\n"
      f"        or {anew:.4f} where each is spelled anew (cold windows);\n"
      f"        {len(text) - len(normalize(text)):,} blanks are dropped by the "
      "normal form and cost nothing",
      soft_wrap=True,
    )
  if excerpt.trained_on:
    console.print(
      f"warning {excerpt.trained_on:,} of these characters were trained on",
      soft_wrap=True,
    )


def _make_record(
  config: EvaluateConfig,
  members: list[Trained],
  excerpt: Excerpt,
  num_tokens: int,
) -> dict[str, Any]:
  """Return the record of an evaluation, without results."""
  trained, corpus = members[0], members[0].config.data.corpus
  ensemble = len(members) > 1
  return {
    "corpus": recorded_corpus(config.corpus) if config.corpus else corpus,
    "corpus_sha256": text_sha256(excerpt.whole),
    "runs": [recorded_path(name) for name in config.run] if ensemble else None,
    "checkpoint": config.checkpoint,
    "step": [one.step for one in members] if ensemble else trained.step,
    "val_loss": [one.val_loss for one in members],
    **cost([Path(name) for name in config.run], members),
    "split": excerpt.split,
    "begin": excerpt.begin,
    "end": excerpt.end,
    "tokenizer": trained.tokenizer.unit,
    "predictions": num_tokens - 1,
    "characters": len(excerpt.text) - 1,
    "trained_on": excerpt.trained_on,
    "device": device_name(),
    **{figure: {} for figure in FIGURES},
  }


def main() -> None:
  """Read the flags and evaluate."""
  run(config_from_flags(EvaluateConfig(), FLAGS), make_console())


if __name__ == "__main__":
  FLAGS = define_flags(EvaluateConfig())
  launch(main, required=("run",))
