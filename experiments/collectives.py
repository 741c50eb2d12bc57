r"""What the devices of a mesh send each other in one update of a training.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m experiments.collectives --mesh=data:8

takes the flags of `experiments.train`, compiles its update for as many devices,
which may be simulated ones, and reads the program: nothing is trained. On a
GPU, XLA may send the same in more pieces or by other collectives.
"""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.cli import launch, plain_console
from experiments.trainer.config import (
  TrainConfig,
  make_vocabulary,
  model_config,
  optimizer_config,
  regularizers,
)
from experiments.trainer.flags import define_flags
from experiments.trainer.placement import mesh_of, mesh_told
from lstm_jax.language import language_model, read_text, split
from lstm_jax.training import (
  Collective,
  collectives,
  init_state,
  make_optimizer,
  state_shardings,
)
from lstm_jax.training.sharding import block_sharding, partition


class Result(NamedTuple):
  """What an update sends."""

  weights: int  # bytes of all weights
  sent: list[Collective]


def run(config: TrainConfig, console: Console) -> Result:
  """Compile the update that `config` describes, and print what it sends.

  Raises:
    ValueError: there is no mesh, or it does not fit the devices.
  """
  mesh = mesh_of(config)
  if not mesh:
    raise ValueError("one device sends nothing: pass --mesh, such as data:8")
  text = read_text(config.corpus)
  vocabulary = make_vocabulary(
    config, text, split(text, config.val_fraction)[0]
  )
  model = language_model(
    model_config(config, vocabulary.size),
    regularizers=regularizers(config),
    groups=mesh.size,
  )
  rule = make_optimizer(optimizer_config(config), 1000)
  key = jax.random.key(config.seed)

  def begin():
    params = model.init(key)
    averaged = config.ema_decay > 0
    return init_state(model, rule, params, config.batch_size, averaged=averaged)

  state = jax.eval_shape(begin)
  shardings = state_shardings(mesh, rule, state)
  placed = jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding), state, shardings
  )
  shape = config.seq_len, config.batch_size
  block = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=block_sharding(mesh))
  update = partition(mesh, model, rule, key, shardings, config.ema_decay)
  compiled = update.lower(placed, block, block).compile()
  leaves = jax.tree.leaves(state.params)
  weights = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  result = Result(weights, collectives(compiled.as_text()))
  table = Table("collective", "instructions", "in a loop", "bytes of results")
  number: Counter = Counter((c.kind, c.looped) for c in result.sent)
  for (kind, looped), count in number.items():
    total = sum(c.bytes for c in result.sent if c[::2] == (kind, looped))
    table.add_row(kind, str(count), "yes" if looped else "no", f"{total:,}")
  console.print(f"one update{mesh_told(mesh)}; weights of {weights:,} bytes")
  console.print(table)
  return result


def main() -> None:
  """Read the flags and run."""
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  run(config, plain_console())


if __name__ == "__main__":
  FLAGS = define_flags()
  launch(main)
