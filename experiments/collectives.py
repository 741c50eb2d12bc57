r"""Print what the devices of a mesh communicate in one training step.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m experiments.collectives --mesh=data:8

takes the flags of `experiments.train`, compiles the training step for the
devices of the mesh, which may be simulated, and reads the compiled program; it
trains nothing. On a GPU, XLA may choose other collectives.
"""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.cli import launch, make_console
from experiments.trainer.config import TrainConfig
from experiments.trainer.flags import config_from_flags, define_flags
from experiments.trainer.resources import num_bytes
from experiments.trainer.setup import format_mesh, make_setup
from lstm_jax.training import Collective, find_collectives
from lstm_jax.training.sharding import batch_sharding, partition


class Result(NamedTuple):
  """What a training step communicates."""

  weight_bytes: int  # of all weights
  collectives: list[Collective]


def run(config: TrainConfig, console: Console) -> Result:
  """Compile the training step of a configuration and print its collectives.

  Raises:
    ValueError: there is no mesh, it does not fit the devices, or the corpus is
      not usable.
  """
  setup = make_setup(config)
  mesh, shardings = setup.mesh, setup.shardings
  if not mesh or not shardings:
    raise ValueError(
      "one device communicates nothing: pass --mesh, such as data:8"
    )
  state = jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding),
    setup.state_like,
    shardings,
  )
  shape = config.batching.seq_len, config.batching.batch_size
  batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
  decay = config.averaging.ema_decay
  step = partition(mesh, setup.model, setup.optimizer, shardings, decay)
  key_data = jax.random.key_data(setup.keys.noise)
  lowered = step.lower(state, batch, batch, key_data)
  weights = num_bytes(state.params)
  result = Result(weights, find_collectives(lowered.compile().as_text()))
  console.print(
    f"one training step{format_mesh(mesh)}; weights of {weights:,} bytes"
  )
  console.print(_table(result.collectives))
  return result


def _table(collectives: list[Collective]) -> Table:
  table = Table(
    "collective", "instructions", "in a loop", "bytes of results, once"
  )
  counts: Counter = Counter((c.kind, c.looped) for c in collectives)
  for (kind, looped), count in counts.items():
    total = sum(
      c.bytes for c in collectives if (c.kind, c.looped) == (kind, looped)
    )
    table.add_row(kind, str(count), "yes" if looped else "no", f"{total:,}")
  return table


def main() -> None:
  """Read the flags and run."""
  run(config_from_flags(TrainConfig(), FLAGS), make_console())


if __name__ == "__main__":
  FLAGS = define_flags(TrainConfig())
  launch(main)
