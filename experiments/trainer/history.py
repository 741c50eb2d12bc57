"""The course of a run as its folder tells it, also while it goes on."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.trainer import run_dir
from experiments.trainer.checkpoint import read_progress
from experiments.trainer.config import TrainConfig, model_config, reading
from experiments.trainer.data import read_corpus
from experiments.trainer.ensemble import Progress, SweepConfig, members_of
from lstm_jax.language import language_model
from lstm_jax.training import list_checkpoints

SKIPPED = "loss", "grad_norm"  # null where no update of a row was finite
# A title of samples.txt, as `experiments.train` writes them.
TITLE = re.compile(
  r"^=== (untrained|update (\d+), epoch .*|the best, of update \d+: .*) ===\n",
  re.MULTILINE,
)


class Sample(NamedTuple):
  """What a run wrote at a look."""

  title: str
  step: int | None  # None for the last one, of the best weights
  text: str


class RunHistory(NamedTuple):
  """What a run's folder tells of it, or a sweep's of a member."""

  directory: Path
  member: str  # of a sweep, as it is called; else empty
  record: dict[str, Any]  # config.json
  config: TrainConfig  # that it says
  rows: list[dict[str, Any]]  # metrics.jsonl
  samples: list[Sample]
  finished: bool

  @property
  def unit(self) -> str:
    """What a token is."""
    return self.config.tokenizer

  @property
  def watched(self) -> str:
    """The text whose loss is watched: "development" or "held_out"."""
    return "development" if self.config.development else "held_out"


class Derived(NamedTuple):
  """What follows from a configuration and its corpus."""

  parameters: int
  num_steps: int


def read_run_history(directory: Path) -> RunHistory:
  """Read what a run's folder tells.

  A last line of metrics.jsonl that is being written is left out.

  Raises:
    ValueError: the folder holds no run, its config.json is damaged, or another
      line is no row of a run.
  """
  record = run_dir.read_record(directory)
  samples = _samples(_text(directory / run_dir.SAMPLES))
  # Before there was result.json, the last sample was a run's end.
  ended = bool(samples) and samples[-1].step is None
  finished = ended or (directory / run_dir.RESULT).exists()
  config = run_dir.configuration(record, TrainConfig())
  rows = _rows(directory / run_dir.METRICS)
  return RunHistory(directory, "", record, config, rows, samples, finished)


def read_run_histories(directory: Path) -> list[RunHistory]:
  """Read what a folder tells of its run, or of each member of its sweep.

  Of a member only the looks are known, as the newest checkpoint has them, and
  the seconds of all updates, of which each is taken to last as long.

  Raises:
    ValueError: as `read_course`, or the checkpoint of a sweep cannot be read.
  """
  course = read_run_history(directory)
  if "num_seeds" not in course.record:
    return [course]
  config = run_dir.configuration(course.record, SweepConfig())
  checkpoints, members = directory / run_dir.CHECKPOINTS, members_of(config)
  looks: list[list[Any]] = [[]] * len(members)
  steps, pace = list_checkpoints(checkpoints), 0.0
  if steps:
    progress = read_progress(checkpoints, steps[-1], Progress)
    looks, pace = progress.looks, progress.seconds / steps[-1]
  found = []
  for one, seen in zip(members, looks, strict=True):
    own = {"seed": one.seed, "learning_rate": one.learning_rate}
    rows = [
      {"step": step, course.watched: nats, "seconds": pace * step}
      for step, nats in seen
      if nats is not None
    ]
    name = f"seed {one.seed} at {one.learning_rate:g}"
    record = course.record | own
    found.append(course._replace(member=name, record=record, rows=rows))
  return found


def derive(course: RunHistory) -> Derived | None:
  """Return what follows from config.json; None where its corpus is not there.

  Nor may it have changed since the run.
  """
  config = course.config
  try:
    corpus = read_corpus(config)
    if corpus.sha256 != course.record.get("corpus_sha256"):
      return None
    model = language_model(model_config(config, corpus.vocabulary.size))
    num_steps = reading(config).num_steps(corpus.training.tokens)
  except ValueError:
    return None
  params = jax.eval_shape(model.init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  return Derived(count, num_steps)


def _text(path: Path) -> str:
  """Return a log's text, of which the last character may be half written."""
  try:
    return path.read_bytes().decode("utf-8", "replace")
  except FileNotFoundError:
    return ""


def _rows(path: Path) -> list[dict[str, Any]]:
  rows = []
  *lines, last = _text(path).split("\n")  # without a line break, it is cut off
  del last
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if isinstance(row, dict):
      row = {n: v for n, v in row.items() if v is not None or n not in SKIPPED}
    if not _is_row(row):
      raise ValueError(
        f"line {number} of {path} is no row of a run: {line[:60]}"
      )
    rows.append(row)
  return rows


def _is_row(row: Any) -> bool:
  """Return whether it has a step, and figures alone."""
  if not isinstance(row, dict) or not isinstance(row.get("step"), int):
    return False
  values = row.values()
  return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _samples(text: str) -> list[Sample]:
  titles = list(TITLE.finditer(text))
  ends = [*(title.start() for title in titles), len(text)][1:]
  found = []
  for title, end in zip(titles, ends, strict=True):
    step = int(title[2]) if title[2] else 0
    written = text[title.end() : end].removesuffix("\n\n")
    last = title[1].startswith("the best, of update")
    found.append(Sample(title[1], None if last else step, written))
  return found
