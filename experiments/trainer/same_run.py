"""Whether a run directory holds the run that flags and corpus describe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus_path import recorded_corpus, recorded_path
from experiments.trainer.extension import first_epochs
from experiments.trainer.records import from_record, to_record
from experiments.trainer.run_dir import (
  CONFIG,
  INIT_FROM,
  JOB_FLAGS,
  SHA256,
  TEACHERS,
  read_config,
  read_record,
)

# {flag: entry of config.json, and of `facts`, that identifies what it names}
HASHES = {"corpus": SHA256, "teacher": TEACHERS, "init_from": INIT_FROM}
REPLACE_OR_KEEP = "--overwrite replaces it, another --run keeps it"


def recorded_flags(config: TrainConfig) -> dict[str, Any]:
  """Return the flags as config.json holds them."""
  source, teachers = config.init_from, config.distillation.teacher
  return to_record(config) | {
    "corpus": recorded_corpus(config.data.corpus),
    "init_from": recorded_path(source) if source else "",
    "teacher": [recorded_path(name) for name in teachers],
  }


def check_same_run(
  directory: Path, config: TrainConfig, sha256: str, *, advice: str
) -> None:
  """Raise ValueError unless a finished run is of this configuration and corpus.

  A run that was extended to these epochs is refused, too.

  Args:
    directory: holds the run.
    config: the configuration that it should have.
    sha256: the hash of the corpus that it should have read.
    advice: what to do about it, the end of the message.
  """
  record = read_record(directory)
  changes = changed_flags(record, config, {SHA256: sha256})
  reason = described(record, changes)
  if record.get(SHA256) != sha256:
    reason = reason or "the corpus has changed"
  if reason:
    raise ValueError(
      f"{directory} holds a finished run of another configuration: {reason}; "
      f"{advice}"
    )
  check_not_extended(directory, config, advice=advice)


def check_not_extended(
  directory: Path, config: TrainConfig, *, advice: str
) -> None:
  """Raise ValueError if a run began with fewer epochs than `config` has.

  An extended run need not end as one that had all epochs from the start: most
  schedules had other learning rates (`extension`). With --overwrite, which
  replaces the run, nothing is checked.

  Args:
    directory: may hold a run.
    config: the configuration with which it is read, or would be resumed.
    advice: what to do about it, the end of the message.
  """
  record = read_config(directory)
  if record is None or config.job.overwrite:
    return
  first, epochs = first_epochs(record), config.batching.num_epochs
  if type(first) is int and first < epochs:
    raise ValueError(
      f"{directory} holds a run that began with num_epochs={first}: extended "
      f"to {epochs}, it need not end as a run of {epochs} from the start; "
      f"{advice}"
    )


def changed_flags(
  record: dict[str, Any], config: TrainConfig, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Return the flags that differ from config.json, with their new values.

  JOB_FLAGS, which do not change what is trained, are left out. What was moved
  does not differ if its hash in `facts`, which has entries of config.json as of
  now, is that in config.json: a corpus, teachers, or a run to begin from. The
  last is not read any more once there is a checkpoint: `facts` then lacks its
  hash, and the path counts.
  """
  moved = {
    name
    for name, entry in HASHES.items()
    if record.get(entry) == facts.get(entry, "unknown")  # equal to no hash
  }
  same = {*JOB_FLAGS, *moved}
  return {
    name: value
    for name, value in recorded_flags(config).items()
    if name not in same and record.get(name) != value
  }


def check_values(
  directory: Path, config: TrainConfig, record: dict[str, Any]
) -> None:
  """Raise ValueError if CONFIG has a value that no flag can have."""
  try:
    from_record(type(config)(), record)
  except ValueError as error:
    raise ValueError(
      f"{directory / CONFIG} is damaged: {error}; --overwrite replaces the run"
    ) from None


def check_unchanged(
  directory: Path, record: dict[str, Any], changes: dict[str, Any]
) -> None:
  """Raise ValueError if the run has another configuration."""
  if changes:
    raise ValueError(
      f"{directory} holds an unfinished run of another configuration: "
      f"{described(record, changes)}; {REPLACE_OR_KEEP}"
    )


def described(record: dict[str, Any], changes: dict[str, Any]) -> str:
  """Return each changed flag with its value in a record and the new one."""
  return "; ".join(
    f"{name} is {record.get(name)!r} there and {value!r} here"
    for name, value in changes.items()
  )
