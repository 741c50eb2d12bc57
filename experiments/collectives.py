r"""Print what the devices of a mesh communicate in one training step.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m experiments.collectives --mesh=data:8

takes the flags of `experiments.train`, compiles the training step for the
devices of the mesh, which may be simulated, and reads the compiled program; it
trains nothing. On a GPU, XLA may split the same data differently or use other
collectives.
"""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.cli import launch, make_console
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import read_corpus
from experiments.trainer.flags import config_from_flags, define_flags
from experiments.trainer.setup import format_mesh, make_model, run_mesh
from lstm_jax.training import (
  Collective,
  find_collectives,
  init_state,
  make_optimizer,
  state_shardings,
)
from lstm_jax.training.sharding import batch_sharding, partition


class Result(NamedTuple):
  """What a training step communicates."""

  weight_bytes: int  # of all weights
  collectives: list[Collective]


def run(config: TrainConfig, console: Console) -> Result:
  """Compile the training step of a configuration and print its collectives.

  Raises:
    ValueError: there is no mesh, or it does not fit the devices.
  """
  mesh = run_mesh(config)
  if not mesh:
    raise ValueError(
      "one device communicates nothing: pass --mesh, such as data:8"
    )
  corpus = read_corpus(config.data)
  model = make_model(config, corpus.tokenizer.size, mesh)
  optimizer = make_optimizer(config.optimizer, num_steps=1)
  key = jax.random.key(config.seed)
  batching, averaging = config.batching, config.averaging

  def make_state():
    return init_state(
      model,
      optimizer,
      model.init(key),
      batching.batch_size,
      averaged=averaging.enabled,
    )

  state = jax.eval_shape(make_state)
  shardings = state_shardings(mesh, optimizer, state)
  placed = jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding), state, shardings
  )
  shape, sharding = (
    (batching.seq_len, batching.batch_size),
    batch_sharding(mesh),
  )
  batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
  step = partition(mesh, model, optimizer, shardings, averaging.ema_decay)
  lowered = step.lower(placed, batch, batch, jax.random.key_data(key))
  weights = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)
  )
  result = Result(weights, find_collectives(lowered.compile().as_text()))
  console.print(
    f"one training step{format_mesh(mesh)}; weights of {weights:,} bytes"
  )
  console.print(_table(result.collectives))
  return result


def _table(collectives: list[Collective]) -> Table:
  table = Table(
    "collective", "instructions", "in a loop", "bytes of results, each time"
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
