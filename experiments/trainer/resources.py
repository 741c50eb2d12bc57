"""What a run needs, before it is begun: memory, products, tokens.

Memory is the compiler's own account of the compiled update: its arguments, its
temporaries and what does not take an argument's place of its results. Products
are counted from the shapes, two operations a multiply-add, once forward and
twice backward; what is not a product is left out.
"""

import os
import resource
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.trainer.config import TrainConfig
from experiments.trainer.setup import TrainSetup, heading, make
from lstm_jax.language import LanguageParams


class Footprint(NamedTuple):
  """What one update takes."""

  bytes: int  # of memory, at its peak
  state_bytes: int  # of them, what is kept between updates
  operations: int  # floating-point, of its products


def dry_run(config: TrainConfig, console: Console) -> Footprint:
  """Print what the run would be and need, and make nothing.

  Raises:
    ValueError: as `make`, or there is a mesh.
  """
  if config.mesh:
    raise ValueError(f"a dry run is of one device, got a mesh of {config.mesh}")
  parts = make(config)
  console.print(heading(config, parts), soft_wrap=True)
  most = most_streams(config)
  needs = footprint(parts, most, config.seq_len)
  streams = next(parts.reading.epochs(parts.corpus.training.tokens))
  console.print(
    f"an update   {most} streams × {config.seq_len} steps: "
    f"{bytes_told(needs.bytes)} of memory ({bytes_told(needs.state_bytes)} "
    f"between updates), {needs.operations / 1e9:,.2f} GFLOP in products\n"
    f"an epoch    {streams.tokens_per_epoch:,} predictions in "
    f"{streams.num_batches:,} updates\n"
    f"the run     {total_operations(parts) / 1e12:,.1f} TFLOP",
    soft_wrap=True,
  )
  return needs


def footprint(parts: TrainSetup, batch_size: int, seq_len: int) -> Footprint:
  """Compile the update for blocks of that size, and say what it takes.

  Args:
    parts: of the run; the update is not called, nor the state's arrays read.
    batch_size: B of a block.
    seq_len: T of a block.
  """
  like = jax.tree.map(jax.typeof, parts.state)._replace(
    carry=jax.eval_shape(lambda: parts.model.initial_state((batch_size,)))
  )
  block = jax.ShapeDtypeStruct((seq_len, batch_size), jnp.int32)
  update: Any = parts.update  # which jax.jit has made
  memory = update.lower(like, block, block).compile().memory_analysis()
  kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
  return Footprint(
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    kept,
    operations(like.params, batch_size * seq_len),
  )


def most_streams(config: TrainConfig) -> int:
  """Return B of the widest blocks: some come late."""
  return max(config.batch_size, config.late_batch_size)


def total_operations(parts: TrainSetup) -> int:
  """Return the operations of a whole run's products."""
  epochs = parts.reading.epochs(parts.corpus.training.tokens)
  blocks = (
    block * streams.tokens.shape[1]
    for streams in epochs
    for block in np.diff(streams.cuts)
  )
  return sum(operations(parts.state.params, tokens) for tokens in blocks)


def operations(params: LanguageParams, tokens: int) -> int:
  """Return the floating-point operations of an update's products.

  The first layer's inputs are rows of the table E W_x, which is one product an
  update, or as many rows as there are tokens where those are fewer.
  """
  embedding = params.embedding
  first = params.layers[0]
  rows = min(tokens, embedding.shape[0])
  once = rows * np.prod(first.w_x.shape)
  each = sum(
    leaf.size for leaf in jax.tree.leaves(params.layers) if leaf.ndim > 1
  )
  each += embedding.size if params.readout is None else params.readout.size
  return int(6 * (once + tokens * (each - first.w_x.size)))


def available() -> int:
  """Return the bytes that the device may hold.

  That is a GPU's limit; of a CPU, the memory, or what `ulimit -v` grants.
  """
  stats = jax.devices()[0].memory_stats() or {}
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  granted, _ = resource.getrlimit(resource.RLIMIT_AS)
  if granted != resource.RLIM_INFINITY:
    memory = min(memory, granted)
  return stats.get("bytes_limit", memory)


def that_fits(config: TrainConfig, parts: TrainSetup, limit: int) -> str:
  """Return what an update needs, and with how many streams it would fit.

  Args:
    config: of the run.
    parts: of the run.
    limit: bytes of memory; streams are halved until an update takes no more.
  """
  streams, steps = most_streams(config), config.seq_len
  needed = bytes_told(footprint(parts, streams, steps).bytes)
  told = (
    f"{streams} streams × {steps} steps need {needed} and the device has "
    f"{bytes_told(limit)}"
  )
  while streams := streams // 2:
    less = footprint(parts, streams, steps).bytes
    if less <= limit:
      return f"{told}; {streams} × {steps} would need {bytes_told(less)}"
  return f"{told}; no number of streams would fit: take fewer steps or units"


def bytes_told(count: int) -> str:
  """Return a number of bytes as a person reads it."""
  return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
