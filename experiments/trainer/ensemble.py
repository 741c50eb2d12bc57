"""The runs whose models are evaluated together, as an ensemble."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.config import DataConfig
from experiments.trainer.corpus_path import find_corpus
from experiments.trainer.files import are_numbers
from experiments.trainer.trained import Trained, load

SPLIT_FLAGS = "val_fraction", "test_fraction", "dev_fraction"


class Cost(NamedTuple):
  """What the members of an ensemble cost together."""

  members: int
  parameters: int
  training_seconds: float | None  # None if unknown for any member


def load_members(directories: list[Path], checkpoint: str) -> list[Trained]:
  """Load the models of runs that have one corpus, vocabulary and splits.

  Raises:
    ValueError: a run is given twice; the runs differ in their corpus,
      vocabulary or splits; or as `load`.
  """
  seen: set[Path] = set()
  for directory in directories:
    place = directory.resolve()
    if place in seen:
      raise ValueError(f"{directory} is given twice")
    seen.add(place)
  members = [load(directory, checkpoint) for directory in directories]
  for directory, member in zip(directories, members, strict=True):
    difference = _difference(members[0], member)
    if difference:
      raise ValueError(
        f"the runs must have the same corpus, vocabulary and splits: "
        f"{difference} of {directory} differs from that of "
        f"{directories[0]}"
      )
  return members


def _difference(one: Trained, other: Trained) -> str | None:
  """Return what two runs differ in; None where they can be averaged."""
  if one.corpus_sha256 != other.corpus_sha256:
    return "the corpus"
  if one.tokenizer != other.tokenizer:
    return "the vocabulary"
  flag = differing_split(one.config.data, other.config.data)
  return flag and f"--{flag}"


def differing_split(one: DataConfig, other: DataConfig) -> str | None:
  """Return the first of SPLIT_FLAGS in which two runs differ, or None."""
  differing = (f for f in SPLIT_FLAGS if getattr(one, f) != getattr(other, f))
  return next(differing, None)


def find_common_corpus(
  directories: list[Path], members: list[Trained], console: Console
) -> DataConfig:
  """Return the first run's data, with the path at which the corpus is now.

  It is where `find_corpus` finds it for the first run, or else for another.
  """
  datas = (member.config.data for member in members)
  first, *others = zip(directories, datas, strict=True)
  return find_corpus(*first, members[0].corpus_sha256, console, others)


def cost(directories: list[Path], members: list[Trained]) -> Cost:
  """Return what the members cost together."""
  leaves = jax.tree.leaves([member.params for member in members])
  seconds = [_training_seconds(directory) for directory in directories]
  known = [s for s in seconds if s is not None]
  return Cost(
    len(members),
    sum(leaf.size for leaf in leaves),
    round(sum(known), 3) if len(known) == len(seconds) else None,
  )


def _training_seconds(directory: Path) -> float | None:
  """Return how many seconds a run has trained.

  None for a sweep, a run that is not finished, and a damaged result.json.
  """
  if run_dir.is_sweep(run_dir.read_config(directory) or {}):
    return None  # its result.json has the seconds of all members together
  result = run_dir.read_result(directory) or {}
  seconds: Any = result.get("seconds")
  return float(seconds) if are_numbers([seconds]) else None
