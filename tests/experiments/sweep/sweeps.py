"""Make the configuration of a sweep from that of a single run."""

from experiments.trainer.records import from_record, replace, to_record
from experiments.trainer.sweep_members import SweepConfig


def as_sweep(config, **changes):
  """Return a SweepConfig with the flags of a TrainConfig, but for `changes`."""
  record = to_record(SweepConfig()) | to_record(config)
  return replace(from_record(SweepConfig(), record), **changes)
