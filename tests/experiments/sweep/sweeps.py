"""The sweep of the recipe of a run."""

from experiments.trainer.records import from_record, replace, to_record
from experiments.trainer.sweep_members import SweepConfig


def as_sweep(config, **changes):
  """Return the sweep of the recipe of a single run."""
  record = to_record(SweepConfig()) | to_record(config)
  return replace(from_record(SweepConfig(), record), **changes)
