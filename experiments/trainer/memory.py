"""What a run needs: memory and operations of a training step.

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
from experiments.trainer.distillation import read_teachers, soft_target_bytes
from experiments.trainer.format import (
  counted,
  format_bytes,
  format_operations,
)
from experiments.trainer.records import replace
from experiments.trainer.setup import TrainSetup, heading, make_setup
from experiments.trainer.trained import read_pretrained
from lstm_jax.cells.platform import is_cpu
from lstm_jax.language import LanguageParams
from lstm_jax.language.model import reads_table
from lstm_jax.training import TrainState
from lstm_jax.training.sharding import partition, tokens_sharding


class Footprint(NamedTuple):
  """What one training step takes."""

  bytes: int  # memory of one device, at its peak
  state_bytes: int  # the part of `bytes` that is kept between training steps
  operations: int  # floating-point, of the matrix products, on all devices


def dry_run(config: TrainConfig, console: Console) -> Footprint:
  """Print what a run would do and need, from shapes: no weights are made.

  Returns:
    What a training step takes on the largest batch; if the train state and the
    gradient alone are too large for the device, these (`least_footprint`).

  Raises:
    ValueError: as `make_setup`, `read_pretrained` and `read_teachers`.
  """
  setup = make_setup(config)
  console.print(heading(setup), soft_wrap=True)
  read_pretrained(setup)
  if read_teachers(setup, host_memory()):
    needed = format_bytes(soft_target_bytes(setup))
    console.print(f"teachers    their predictions take {needed} on the host")
  batch_size, seq_len = largest_batch(config)
  limit = available_memory() // sharing_memory(setup)
  # A compiler may fail at a program that is too large for its device.
  needs = least_footprint(setup, batch_size, seq_len)
  too_large = needs.bytes > limit
  if not too_large:
    needs = footprint(setup, batch_size, seq_len)
  epoch = next(setup.epochs())
  total = total_operations(setup)
  each = f" on each of {setup.mesh.size} devices" if setup.mesh else ""
  console.print(
    f"a step      {counted(batch_size, 'sequence')} × "
    f"{counted(seq_len, 'token')}: "
    f"{'at least ' * too_large}{format_bytes(needs.bytes)} of memory{each} "
    f"({format_bytes(needs.state_bytes)} between steps), "
    f"{format_operations(needs.operations)} in products\n"
    f"an epoch    {epoch.tokens_per_epoch:,} predicted tokens in "
    f"{counted(epoch.num_batches, 'step')}\n"
    f"the run     {format_operations(total)}",
    soft_wrap=True,
  )
  if needs.bytes > limit:
    fitting = _what_would_fit(setup, batch_size, seq_len, limit)
    device = "each device" if setup.mesh else "the device "
    console.print(
      f"{device} has {format_bytes(limit)}: {fitting}", soft_wrap=True
    )
  return needs


def footprint(setup: TrainSetup, batch_size: int, seq_len: int) -> Footprint:
  """Compile the training step for batches [T, B], and report what it takes."""
  lowered = lower_train_step(setup, batch_size, seq_len)
  memory = lowered.compile().memory_analysis()
  return least_footprint(setup, batch_size, seq_len)._replace(
    bytes=memory.argument_size_in_bytes
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


def least_footprint(
  setup: TrainSetup, batch_size: int, seq_len: int
) -> Footprint:
  """Return the least that a training step takes, from its shapes alone.

  That is the memory of the train state and of the gradient, which has the
  shapes of the weights.
  """
  state = placed_state_like(setup, batch_size)
  return Footprint(
    num_bytes((state, state.params)),
    num_bytes(state),
    operations(
      state.params,
      batch_size * seq_len,
      setup.config.model.cell,
      sharing_batch(setup),
    ),
  )


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


def sharing_batch(setup: TrainSetup) -> int:
  """Return how many devices share each batch of a run."""
  return setup.mesh.size if setup.mesh else 1


def sharing_memory(setup: TrainSetup) -> int:
  """Return how many devices of a run share one memory, as those of a CPU do."""
  return len(jax.local_devices()) if setup.mesh and is_cpu() else 1


def largest_batch(config: TrainConfig) -> tuple[int, int]:
  """Return (B, T) of the largest batches of a run."""
  return max(config.batching.batch_sizes), config.batching.seq_len


def total_operations(setup: TrainSetup) -> int:
  """Return the operations of a whole run's matrix products."""
  config, (_, tokens, gap) = setup.config, setup.corpus.train
  params, cell = setup.state_like.params, config.model.cell
  shapes = config.batching.batch_shapes(tokens, config.seed, gap)
  return sum(
    count * operations(params, length * batch_size, cell, sharing_batch(setup))
    for (length, batch_size), count in shapes.items()
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
  table = rows * first.w_x.size
  per_token = sum(
    leaf.size for leaf in jax.tree.leaves(params.layers) if leaf.ndim > 1
  )
  per_token -= first.w_x.size
  per_token += embedding.size if params.readout is None else params.readout.size
  return 6 * (table + num_tokens * per_token)  # 2 forward, 4 backward


def check_memory(state: TrainState, limit: int, sharing: int = 1) -> None:
  """Raise ValueError if an initial train state needs more bytes than the limit.

  Beside the state, or its shards, a device needs room for all weights: they are
  drawn whole, or where a mesh splits them, gathered in each training step.

  Args:
    state: the train state, or its shapes; on a mesh, with shardings.
    limit: bytes of a device's memory.
    sharing: how many devices, or members of a sweep, share that memory.
  """
  weights = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)
  )
  needed = sharing * num_bytes(state) + weights
  if needed <= limit:
    return
  advice = "reduce --batch_size"
  if needed - sharing * num_bytes(state.carry) > limit:
    advice = "no batch size would fit; reduce --hidden_size, --num_layers, the "
    advice += "members of a sweep, or the --devices of a training on a CPU"
  raise ValueError(
    "out of memory: the train state and a copy of the weights need "
    f"{format_bytes(needed)} and the device has {format_bytes(limit)}: {advice}"
  )


@contextmanager
def advice_if_out_of_memory(setup: TrainSetup) -> Iterator[None]:
  """Replace JAX's out-of-memory error by a ValueError that says what fits.

  With several processes, JAX's own error is raised.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    exhausted = "RESOURCE_EXHAUSTED", "Out of memory"
    if not any(text in str(error) for text in exhausted):
      raise
    if jax.process_count() > 1:
      raise
    condition = ""
    if setup.mesh and is_cpu():
      # The devices of a CPU share its memory, and each holds the weights: the
      # advice is for one device.
      single = replace(setup.config, mesh="", devices="1")
      setup = make_setup(single, setup.corpus)
      condition = "with --devices=1 and no --mesh, "
    advice = advise_batch_size(setup, available_memory())
    raise ValueError(f"out of memory: {condition}{advice}") from None


def advise_batch_size(setup: TrainSetup, limit: int) -> str:
  """Return what a training step needs, and what would fit into the limit.

  The limit is in bytes; B is halved until a step takes no more.
  """
  batch_size, seq_len = largest_batch(setup.config)
  needed = format_bytes(footprint(setup, batch_size, seq_len).bytes)
  return (
    f"a batch of {counted(batch_size, 'sequence')} × "
    f"{counted(seq_len, 'token')} needs {needed} and the device has "
    f"{format_bytes(limit)}; "
    f"{_what_would_fit(setup, batch_size, seq_len, limit)}"
  )


def _what_would_fit(
  setup: TrainSetup, batch_size: int, seq_len: int, limit: int
) -> str:
  """Return which smaller batch size would fit into the memory, if any.

  On a mesh, batch sizes are multiples of the number of devices.
  """
  smallest = sharing_batch(setup)
  least = least_footprint(setup, smallest, seq_len).bytes
  if least > limit:
    return (
      "no batch size would fit: the train state and the gradient alone need "
      f"{format_bytes(least)}"
    )
  multiple = batch_size // smallest
  while multiple := multiple // 2:
    batch_size = multiple * smallest
    needed = footprint(setup, batch_size, seq_len).bytes
    if needed <= limit:
      return f"{batch_size:,} × {seq_len:,} would need {format_bytes(needed)}"
  return "no batch size would fit: reduce --seq_len or --hidden_size"


STATM = Path("/proc/self/statm")  # Linux; its second number: resident pages
# JAX's event for a program that is compiled, or loaded from its cache.
COMPILED = "/jax/core/compile/backend_compile_duration"


def available_memory() -> int:
  """Return the bytes that the device may hold.

  That is a GPU's limit; on a CPU, `host_memory`.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", host_memory())


def host_memory() -> int:
  """Return the smaller of the machine's memory and the limit of `ulimit -v`.

  Both are in bytes. The limit of a container or a batch job (cgroup) is not
  read.
  """
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  granted, _ = resource.getrlimit(resource.RLIMIT_AS)
  if granted != resource.RLIM_INFINITY:
    memory = min(memory, granted)
  return memory


def num_bytes(tree: Any) -> int:
  """Return how many bytes of a tree's arrays one device holds.

  Args:
    tree: of `jax.Array` or `jax.ShapeDtypeStruct`. The device holds all of an
      array without a sharding.
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
