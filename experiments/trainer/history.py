"""The history of a run, read from its directory, also while it is training."""

import json
import math
import re
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import read_newest, read_progress
from experiments.trainer.config import DataConfig, TrainConfig
from experiments.trainer.corpus import cached_path, find_corpus, is_name
from experiments.trainer.data import read_corpus
from experiments.trainer.files import are_numbers
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.sweep_members import (
  Progress,
  SweepConfig,
  make_members,
)
from experiments.trainer.trained import read_replaced
from lstm_jax.language import language_model

# With more of either, for which it could take hours, `derive` returns None.
MOST_EPOCHS = 10**6
MOST_LAYERS = 1_000
LONGEST = 1e13  # seconds: less than the 8.6e13 that a timedelta can hold
# Entries of a row that are null if none of its training steps was finite.
NULLABLE = "train_loss", "grad_norm"
# A title of samples.txt, as `experiments.train` writes them.
TITLE = re.compile(
  r"^=== (untrained|step (\d{1,18}), epoch .*|"
  r"best checkpoint, step \d+: .*) ===\n",
  re.MULTILINE,
)


class Sample(NamedTuple):
  """A sample of a run: at its start, at an evaluation, or at its end."""

  title: str
  step: int | None  # None for the last one, of the best weights
  text: str


class RunHistory(NamedTuple):
  """The history of a run, or of one member of a sweep."""

  directory: Path
  member: str  # name of a sweep's member; empty for a single run
  record: dict[str, Any]  # config.json; of a member, with its seed and rate
  config: TrainConfig  # a member has that of its sweep, whose batches it reads
  rows: list[dict[str, Any]]  # metrics.jsonl; of a member, its evaluations
  samples: list[Sample]
  finished: bool
  stopped_early: bool  # finished by --patience

  @property
  def unit(self) -> str:
    """What a token is, as "word": a tokenizer is named after its tokens."""
    return self.config.data.tokenizer


class Derived(NamedTuple):
  """Sizes that follow from a configuration and its corpus."""

  num_parameters: int
  epoch_ends: list[int]  # training steps made at the end of each epoch

  @property
  def num_steps(self) -> int:
    """The number of training steps of the whole run."""
    return self.epoch_ends[-1]


def read_run_history(directory: Path) -> RunHistory:
  """Read the history of a run.

  A last line of metrics.jsonl that is still being written is left out.

  Raises:
    ValueError: the directory holds no run, its config.json is damaged, or a
      line of metrics.jsonl is not a row of a run.
  """
  record = run_dir.read_record(directory)
  samples = _parse_samples(_read(directory / run_dir.SAMPLES))
  result = run_dir.read_result(directory)
  finished = result is not None
  early = (result or {}).get("stopped_early") is True
  config = run_dir.to_config(directory, record, TrainConfig())
  rows = read_rows(directory / run_dir.METRICS)
  return RunHistory(
    directory, "", record, config, rows, samples, finished, early
  )


def read_run_histories(directory: Path) -> list[RunHistory]:
  """Read the history of a run, or of each member of a sweep.

  The rows of a member hold only its evaluations, which are read from the newest
  checkpoint; a row whose loss was not finite has no val_loss. The seconds of
  the rows assume that all training steps took equally long.

  Raises:
    ValueError: as `read_run_history`; or a sweep's checkpoint cannot be read,
      or has another number of members than its config.json.
  """
  history = read_run_history(directory)
  if not run_dir.is_sweep(history.record):
    return [history]
  config = run_dir.to_config(directory, history.record, SweepConfig())
  members = make_members(config)
  newest = read_replaced(directory, lambda: _newest(directory))
  step, progress = newest or (0, None)
  losses = progress.val_losses if progress else [[]] * len(members)
  seconds = progress.seconds / step if progress else 0.0  # of each step
  if len(losses) != len(members):
    raise ValueError(
      f"{directory / run_dir.CONFIG} is of {len(members)} members, and the "
      f"checkpoint of step {step} beside it is of {len(losses)}"
    )
  histories = []
  for member, own in zip(members, losses, strict=True):
    flags = {"seed": member.seed, "learning_rate": member.learning_rate}
    rows: list[dict[str, Any]] = []
    for at, nats in own:
      rows.append({"step": at, "seconds": seconds * at})
      if nats is not None:
        rows[-1]["val_loss"] = nats
    name = f"seed {member.seed} at {member.learning_rate}"
    record = history.record | flags
    histories.append(history._replace(member=name, record=record, rows=rows))
  return histories


def _newest(directory: Path) -> tuple[int, Progress] | None:
  """Return the step and progress of a sweep's newest readable checkpoint."""
  checkpoints = directory / run_dir.CHECKPOINTS

  def read(step: int) -> tuple[int, Progress]:
    return step, read_progress(checkpoints, step, Progress)

  return read_newest(checkpoints, read, Console(quiet=True))


def derive(history: RunHistory) -> Derived | None:
  """Return the sizes that follow from config.json and the corpus.

  Returns:
    None where the corpus is missing (a named one: not downloaded) or has
    changed since the run, or the run has more than MOST_EPOCHS or MOST_LAYERS.
  """
  config, sha256 = history.config, str(history.record.get("corpus_sha256"))
  num_epochs, num_layers = config.batching.num_epochs, config.model.num_layers
  if num_epochs > MOST_EPOCHS or num_layers > MOST_LAYERS:
    return None
  try:
    data = find_corpus(history.directory, config.data, sha256)
    if is_name(data.corpus) and not cached_path(data.corpus).is_file():
      return None
    vocabulary_size, tokens, gap = _corpus_facts(data, sha256)
    model = language_model(config.model, vocabulary_size)
    lengths = config.batching.epoch_lengths(tokens, config.seed, gap)
    each = (length for epochs, length in lengths for _ in range(epochs))
    epoch_ends = [*accumulate(each)]
    params = init_shapes(model.init)
  except (ValueError, OverflowError):  # sizes above JAX's integers
    return None
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  return Derived(count, epoch_ends)


@cache  # runs often share their corpus
def _corpus_facts(
  data: DataConfig, sha256: str
) -> tuple[int, np.ndarray, int | None]:
  """Return (V, tokens and gap of the training split) of the text of this hash.

  Raises:
    ValueError: the corpus cannot be read, or is another text.
  """
  corpus = read_corpus(data)
  if corpus.sha256 != sha256:
    raise ValueError(f"{data.corpus} must have the SHA-256 {sha256}")
  return corpus.tokenizer.size, corpus.train.tokens, corpus.train.gap


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Return the rows of metrics.jsonl; null entries of NULLABLE are left out.

  A last line without a line break is left out, too: it is still being written,
  or was cut off by a full disk.

  Raises:
    ValueError: a complete line is not a row of a run.
  """
  rows = []
  lines = _read(path).split("\n")[:-1]
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if isinstance(row, dict):
      row = {n: v for n, v in row.items() if v is not None or n not in NULLABLE}
    if not _is_row(row):
      raise ValueError(
        f"line {number} of {path} is not a row of a run: {line[:60]}"
      )
    rows.append(row)
  return rows


def _is_row(row: Any) -> bool:
  """Return whether a JSON value has a step, and only finite numbers."""
  if not isinstance(row, dict) or not isinstance(row.get("step"), int):
    return False
  return are_numbers(row.values()) and abs(row.get("seconds", 0)) < LONGEST


def _read(path: Path) -> str:
  """Return a log's text; a character still being written becomes �."""
  try:
    return path.read_bytes().decode("utf-8", "replace")
  except FileNotFoundError:
    return ""


def _parse_samples(text: str) -> list[Sample]:
  titles = list(TITLE.finditer(text))
  ends = [*(title.start() for title in titles), len(text)][1:]
  samples = []
  for title, end in zip(titles, ends, strict=True):
    step = int(title[2]) if title[2] else 0
    body = text[title.end() : end].removesuffix("\n\n")
    is_best = title[1].startswith("best checkpoint, step")
    samples.append(Sample(title[1], None if is_best else step, body))
  return samples
