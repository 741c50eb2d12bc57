"""The weights of another run, from which --init_from starts a training.

`trained.load` reads them from the other run's checkpoint of the lowest
validation loss or, if that run has not been evaluated yet, from its newest. The
optimizer, the step and the batches start anew.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.trainer.ensemble import differing_split
from experiments.trainer.records import to_record
from experiments.trainer.run_dir import CHECKPOINTS
from experiments.trainer.setup import TrainSetup
from experiments.trainer.trained import Trained, load
from lstm_jax.training import list_checkpoints

# Flags that must be equal; `check_vocabulary` compares the symbols themselves.
MODEL = (
  "tokenizer",
  "cell",
  "tied",
  "num_layers",
  "hidden_size",
  "embedding_size",
)
LISTED = 5  # symbols of another vocabulary that an error names


def read_pretrained(setup: TrainSetup) -> Trained | None:
  """Return the trained model that --init_from names, its weights on the host.

  Returns:
    None without --init_from, and if this run has a checkpoint of its own to
    resume from.

  Raises:
    ValueError: the directory holds no trained model, or one of another shape
      or vocabulary than this run's, or of other splits of the same corpus.
  """
  config, job = setup.config, setup.config.job
  if not config.init_from:
    return None
  if job.may_resume and list_checkpoints(Path(job.run) / CHECKPOINTS):
    return None
  try:
    trained = load(Path(config.init_from))
  except ValueError as error:
    raise ValueError(f"--init_from: {error}") from None
  _check_fits(setup, trained)
  return trained._replace(params=jax.tree.map(np.asarray, trained.params))


def _check_fits(setup: TrainSetup, trained: Trained) -> None:
  """Raise ValueError unless the weights are of this run's model and splits."""
  expected, found = to_record(setup.config), to_record(trained.config)
  name = f"--init_from={setup.config.init_from}"
  for flag in MODEL:
    if found[flag] != expected[flag]:
      raise ValueError(
        f"{name} has another model: {flag} must be {expected[flag]!r}, as in "
        f"this run, got {found[flag]!r}"
      )
  check_vocabulary(setup, trained, name)
  if trained.corpus_sha256 == setup.corpus.sha256:
    check_splits(setup, trained, name)


def check_splits(setup: TrainSetup, trained: Trained, name: str) -> None:
  """Raise ValueError where a model may know text that a run is tested on.

  Args:
    setup: of the run.
    trained: the model, which has learned from the same text.
    name: the flag that names the model, with its value, for the message.
  """
  ours, theirs = setup.config.data, trained.config.data
  if flag := differing_split(ours, theirs):
    raise ValueError(
      f"{name} has other splits: {flag} must be {getattr(ours, flag)}, as in "
      f"this run, got {getattr(theirs, flag)}"
    )


def check_vocabulary(setup: TrainSetup, trained: Trained, name: str) -> None:
  """Raise ValueError where a model has another vocabulary than a run's corpus.

  Args:
    setup: of the run.
    trained: the model.
    name: the flag that names the model, with its value, for the message.
  """
  here, there = setup.corpus.tokenizer.symbols, trained.tokenizer.symbols
  if tuple(here) != tuple(there):
    unit = setup.corpus.tokenizer.unit
    differences = _listed(", without ", here, there)
    differences += _listed(", with ", there, here)
    raise ValueError(
      f"{name} has another vocabulary: it must be the {len(here):,} {unit}s "
      f"of {setup.config.data.corpus}, got {len(there):,}"
      f"{differences or ' in another order'}"
    )


def _listed(word: str, some: Sequence[str], others: Sequence[str]) -> str:
  """Return `word` and the first symbols of `some` not in `others`, or ""."""
  known = set(others)
  symbols = [repr(symbol) for symbol in some if symbol not in known]
  if not symbols:
    return ""
  more = f" and {len(symbols) - LISTED} more" if len(symbols) > LISTED else ""
  return word + ", ".join(symbols[:LISTED]) + more
