"""What a run needs and what there is: memory, and operations of a step.

The memory of a training step is what the compiler reports for the compiled
step: its arguments, its temporaries, and those results that are not written
over a donated argument. On a mesh it is that of one device. The operations of
its matrix products follow from the shapes: two for each multiply-add, once
forward and twice backward; everything else is left out.
"""

import math
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.trainer.config import TrainConfig
from experiments.trainer.distillation import read_sources, soft_target_bytes
from experiments.trainer.format import (
  counted,
  format_bytes,
  format_operations,
)
from experiments.trainer.setup import TrainSetup, heading, make_setup
from lstm_jax.cells.platform import is_cpu
from lstm_jax.language import LanguageParams
from lstm_jax.language.model import reads_table
from lstm_jax.training import TrainState
from lstm_jax.training.sharding import partition, tokens_sharding

STATM = Path("/proc/self/statm")  # Linux; its second number: resident pages
# JAX's event for a program that is compiled, or loaded from its cache.
COMPILED = "/jax/core/compile/backend_compile_duration"


class Footprint(NamedTuple):
  """What one training step takes."""

  bytes: int  # memory of one device, at its peak
  state_bytes: int  # the part of `bytes` that is kept between training steps
  operations: int  # floating-point, of the matrix products, on all devices


def dry_run(config: TrainConfig, console: Console) -> Footprint:
  """Print what a run would do and need, from shapes: no weights are made.

  Returns:
    What a training step takes on the largest batch. If the train state and the
    gradient are too large for the device, its memory is that of these alone: a
    compiler may fail at such a program.

  Raises:
    ValueError: as `make_setup` and `read_sources`.
  """
  setup = make_setup(config)
  console.print(heading(setup), soft_wrap=True)
  if read_sources(setup, host_memory()).teachers:
    size = format_bytes(soft_target_bytes(setup))
    console.print(f"teachers    their predictions take {size} on the host")
  batching = config.batching
  batch_size, seq_len = max(batching.batch_sizes), batching.seq_len
  state = placed_state_like(setup, batch_size)
  num_devices = setup.mesh.size if setup.mesh else 1
  limit = available_memory() // sharing_memory(setup)
  needed = num_bytes((state, state.params))  # of the state and the gradient
  least = "at least " * (needed > limit)
  if not least:
    needed = step_bytes(setup, batch_size, seq_len)
  products = operations(
    state.params, batch_size * seq_len, config.model.cell, num_devices
  )
  needs = Footprint(needed, num_bytes(state), products)
  epoch = next(setup.epochs())
  each = f" on each of {num_devices} devices" if setup.mesh else ""
  console.print(
    f"a step      {counted(batch_size, 'sequence')} × "
    f"{counted(seq_len, 'token')}: "
    f"{least}{format_bytes(needs.bytes)} of memory{each} "
    f"({format_bytes(needs.state_bytes)} between steps), "
    f"{format_operations(needs.operations)} in products\n"
    f"an epoch    {epoch.tokens_per_epoch:,} predicted tokens in "
    f"{counted(epoch.num_batches, 'step')}\n"
    f"the device  has {format_bytes(limit)} of memory",
    soft_wrap=True,
  )
  return needs


def step_bytes(setup: TrainSetup, batch_size: int, seq_len: int) -> int:
  """Return what a compiled training step on batches [T, B] takes, in bytes."""
  lowered = lower_train_step(setup, batch_size, seq_len)
  memory = lowered.compile().memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def lower_train_step(setup: TrainSetup, batch_size: int, seq_len: int) -> Any:
  """Return the training step of a run for batches [T, B], lowered from shapes.

  It is a `jax.stages.Lowered`; on a mesh, the program of all devices.
  """
  state = placed_state_like(setup, batch_size)
  batch = jax.ShapeDtypeStruct((seq_len, batch_size), jnp.int32)
  targets = batch
  if setup.config.distillation.teacher:
    shape = *batch.shape, setup.corpus.tokenizer.size
    targets = jax.ShapeDtypeStruct(shape, jnp.float32)
  if not (setup.mesh and setup.shardings):
    step: Any = setup.train_step  # made by jax.jit
    return step.lower(state, batch, targets, setup.keys.noise)
  batch, targets = (
    x.update(sharding=tokens_sharding(setup.mesh)) for x in (batch, targets)
  )
  decay = setup.config.averaging.ema_decay
  step = partition(
    setup.mesh, setup.model, setup.optimizer, setup.shardings, decay
  )
  key_data = jax.random.key_data(setup.keys.noise)
  return step.lower(state, batch, targets, key_data)


def placed_state_like(setup: TrainSetup, batch_size: int) -> TrainState:
  """Return the shapes of the train state at a batch size, with shardings."""
  carry = jax.eval_shape(lambda: setup.model.initial_state((batch_size,)))
  state = setup.state_like._replace(carry=carry)
  if not setup.shardings:
    return state
  return jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding),
    state,
    setup.shardings,
  )


def operations(
  params: LanguageParams, num_tokens: int, cell: Any, num_devices: int = 1
) -> int:
  """Return the operations of the matrix products of one training step.

  Where the lowest layer reads rows of the table W_e W_x (embedding times input
  weights), each device multiplies the V rows of W_e by W_x, instead of one row
  per token.
  """
  embedding, first = params.embedding, params.layers[0]
  vocabulary_size = len(embedding)
  has_table = reads_table(cell, vocabulary_size, num_tokens // num_devices)
  rows = num_devices * vocabulary_size if has_table else num_tokens
  per_token = sum(
    leaf.size for leaf in jax.tree.leaves(params.layers) if leaf.ndim > 1
  )
  per_token -= first.w_x.size
  per_token += embedding.size if params.readout is None else params.readout.size
  # 2 forward, 4 backward
  return 6 * (rows * first.w_x.size + num_tokens * per_token)


def check_setup(setup: TrainSetup) -> None:
  """Raise ValueError if the device has no room for a run's train state."""
  state = placed_state_like(setup, setup.config.batching.batch_size)
  check_memory(state, sharing_memory(setup))


def check_memory(state: TrainState, sharing: int = 1) -> None:
  """Raise ValueError if the device has no room for an initial train state.

  Beside the state, or its shards, a device needs room for all weights: they are
  drawn whole, or where a mesh splits them, gathered in each training step.

  Args:
    state: the train state, or its shapes; on a mesh, with shardings.
    sharing: how many devices, or members of a sweep, share that memory.
  """
  weights = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)
  )
  needed, limit = sharing * num_bytes(state) + weights, available_memory()
  if needed > limit:
    raise ValueError(
      "out of memory: the train state and a copy of the weights need "
      f"{format_bytes(needed)} and the device has {format_bytes(limit)}: "
      "reduce the model, --batch_size, the members of a sweep, or on a CPU "
      "--devices"
    )


@contextmanager
def one_line_if_out_of_memory(setup: TrainSetup) -> Iterator[None]:
  """Replace JAX's out-of-memory error by a ValueError with a clear message."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition("\n")[0]
    if "RESOURCE_EXHAUSTED" not in reason and "Out of memory" not in reason:
      raise
    batching = setup.config.batching
    raise ValueError(
      "out of memory with batches of "
      f"{max(batching.batch_sizes):,} × {batching.seq_len:,} tokens: reduce "
      "--batch_size, --seq_len or --hidden_size; --dry_run says what a run "
      f"needs ({reason})"
    ) from None


def sharing_memory(setup: TrainSetup) -> int:
  """Return how many devices of a run share one memory, as those of a CPU do."""
  return len(jax.local_devices()) if setup.mesh and is_cpu() else 1


def available_memory() -> int:
  """Return a GPU's limit, in bytes; on a CPU, `host_memory`."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", host_memory())


def host_memory() -> int:
  """Return the smaller of the machine's memory and the limit of `ulimit -v`.

  Both are in bytes. The limit of a container or a batch job (cgroup) is not
  read.
  """
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  granted, _ = resource.getrlimit(resource.RLIMIT_AS)
  return memory if granted == resource.RLIM_INFINITY else min(memory, granted)


def num_bytes(tree: Any) -> int:
  """Return how many bytes of a tree's arrays, or their shapes, a device holds.

  It holds all of an array without a sharding.
  """

  def size(leaf: Any) -> int:
    shape = leaf.shape
    if leaf.sharding is not None:
      shape = leaf.sharding.shard_shape(shape)
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(map(size, jax.tree.leaves(tree)))


def process_size() -> dict[str, float]:
  """Return how large the process is now, for a row of metrics.jsonl.

  Returns:
    resident_mb: memory of the process, in 1e6 bytes; only on Linux.
    live_mb: arrays that JAX holds, in 1e6 bytes.
    compilations: programs compiled, or loaded from JAX's compilation cache,
      since the first call.
  """
  size = {"live_mb": sum(x.nbytes for x in jax.live_arrays()) / 1e6}
  if STATM.exists():
    pages = int(STATM.read_text().split()[1])
    size["resident_mb"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
  return {name: round(x, 3) for name, x in size.items()} | {
    "compilations": _events()[COMPILED]
  }


@cache
def _events() -> Counter[str]:
  """Return how often JAX has reported each event since the first call."""
  counts: Counter[str] = Counter()
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **kwargs: counts.update([event])
  )
  return counts
