"""Extending a run in its directory, by more epochs or patience.

The flags in MAY_CHANGE decide where a run ends, and not what a training step
computes, but for the learning rate: a schedule that decays is stretched to the
new number of training steps, so that the rate rises where the run resumes. With
a constant rate, and if its warmup had ended, an extended run ends with the same
weights as a run that had all epochs from its start; but --patience and
--asgd_patience count the evaluation at the old end as well.

config.json lists the extensions of its run: the new values of these flags,
their values and the result before, and when and in which environment the run
resumed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.trainer.config import TrainConfig
from experiments.trainer.records import to_record
from lstm_jax.language.epochs import LATE_DIVISOR

MAY_CHANGE = "num_epochs", "patience"
EXTENSIONS = "extensions"  # the list in config.json


def first_epochs(record: Mapping[str, Any]) -> Any:
  """Return the number of epochs with which the run of config.json began."""
  extensions = record.get(EXTENSIONS)
  try:
    return extensions[0]["before"]["num_epochs"]  # type: ignore[index]
  except (TypeError, LookupError):  # none, or damaged
    return record.get("num_epochs")


def extends(
  record: Mapping[str, Any],
  changes: Mapping[str, Any],
  result: Mapping[str, Any] | None,
) -> bool:
  """Return whether changed flags extend a run.

  More epochs do; so does another patience, unless the run has made its last
  epoch. The new patience counts the evaluations so far. Fewer epochs do not
  extend a run, nor does a smaller patience other than 0 extend an unfinished
  one: that is another run. If the result is true and the new values still do
  not fit a finished run, `check_extension` raises an error.

  Args:
    record: config.json of the run.
    changes: the flags that differ from it, with their new values.
    result: result.json; None for an unfinished run.
  """
  before = record["num_epochs"]
  if not changes or not changes.keys() <= set(MAY_CHANGE):
    return False
  added = changes.get("num_epochs", before) - before
  stopped_early = result is not None and result.get("stopped_early")
  limit = record["patience"]
  patience = changes.get("patience", limit)
  if 0 < patience < limit and result is None:
    return False
  at_its_end = result is not None and not stopped_early
  return added > 0 or (added == 0 and not at_its_end)


def check_extension(
  directory: Path,
  record: Mapping[str, Any],
  config: TrainConfig,
  result: Mapping[str, Any] | None,
) -> None:
  """Raise ValueError where a run cannot have more epochs or patience.

  Args:
    directory: the run directory.
    record: its config.json.
    config: the new configuration, for which `extends` is true.
    result: result.json; None for an unfinished run.
  """
  before, epochs = record["num_epochs"], config.batching.num_epochs
  late = config.batching.late_batch_size
  if late and epochs > before >= LATE_DIVISOR:
    raise ValueError(
      f"{directory} cannot be extended: --late_batch_size={late} applies to "
      f"the last third of its {before} epochs, and with {epochs} to other ones"
    )
  limit, patience = record["patience"], config.evaluation.patience
  if result and result.get("stopped_early") and 0 < patience <= limit:
    raise ValueError(
      f"the run in {directory} has stopped early: to extend it, --patience "
      f"must be above {limit}, or 0, got {patience}"
    )
  if result is not None and 0 < patience < limit:
    raise ValueError(
      f"the run in {directory} has finished: to extend it, --patience must be "
      f"at least {limit}, or 0, got {patience}"
    )


def extended_record(
  record: dict[str, Any],
  config: TrainConfig,
  result: Mapping[str, Any] | None,
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Return config.json of the extended run.

  Args:
    record: config.json so far.
    config: the new configuration.
    result: result.json; None for an unfinished run.
    facts: when and in which environment the run resumes.
  """
  flags = to_record(config)
  now = {flag: flags[flag] for flag in MAY_CHANGE}
  before = {flag: record[flag] for flag in MAY_CHANGE} | {"result": result}
  extension = now | {"before": before} | dict(facts)
  return record | now | {EXTENSIONS: [*record.get(EXTENSIONS, []), extension]}
