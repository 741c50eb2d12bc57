r"""Print what the devices of a mesh communicate in one training step.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m experiments.collectives --mesh=data:8

compiles a training step for the devices that --mesh or --devices names, and
lists the collectives in the compiled program; it trains nothing. The flags are
those of `experiments.train`. The devices may be simulated, as above; for GPUs,
XLA may choose other collectives than for CPUs. A collective in a loop counts
once, however often the loop runs.
"""

from collections import Counter
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.cli import launch, make_console
from experiments.trainer.config import TrainConfig
from experiments.trainer.distributed import share_batches
from experiments.trainer.format import number_table, print_table
from experiments.trainer.memory import lower_train_step, num_bytes
from experiments.trainer.records import config_from_flags, define_flags
from experiments.trainer.setup import format_mesh, make_setup
from lstm_jax.training import Collective, find_collectives


class Result(NamedTuple):
  """What a training step communicates."""

  weight_bytes: int  # of all weights
  collectives: list[Collective]


def run(config: TrainConfig, console: Console) -> Result:
  """Compile the training step of a configuration and print its collectives.

  Raises:
    ValueError: one device does the training without --mesh, a mesh does not fit
      the devices, or the corpus is not usable.
  """
  setup = make_setup(config)
  if not setup.mesh:
    raise ValueError(
      "one device communicates nothing: pass --devices, or --mesh such as "
      "data:8"
    )
  batching = config.batching
  lowered = lower_train_step(setup, batching.batch_size, batching.seq_len)
  weights = num_bytes(setup.state_like.params)
  result = Result(weights, find_collectives(lowered.compile().as_text()))
  console.print(
    f"one training step{format_mesh(setup.mesh)}; weights of {weights:,} bytes"
  )
  print_table(_table(result.collectives), console)
  return result


def _table(collectives: list[Collective]) -> Table:
  """Return a table with a row for each kind, in loops and outside of them."""
  table = number_table(
    "collective", "instructions", "in a loop", "bytes of results on a device"
  )
  counts: Counter = Counter()
  sizes: Counter = Counter()
  for collective in collectives:
    row = collective.kind, collective.looped
    counts[row] += 1
    sizes[row] += collective.bytes
  for (kind, looped), count in counts.items():
    size = f"{sizes[kind, looped]:,}"
    table.add_row(kind, str(count), "yes" if looped else "no", size)
  return table


def main() -> None:
  """Read the flags and run."""
  (config,) = share_batches([config_from_flags(TrainConfig(), FLAGS)])
  run(config, make_console())


if __name__ == "__main__":
  FLAGS = define_flags(TrainConfig())
  launch(main)
