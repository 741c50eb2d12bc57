"""The forward kernel: all time steps of a layer in one launch.

Each thread block loads W_h into shared memory at the start (in a cluster, its
rows of W_hᵀ) and computes for its sequences

  for t = 1 … T
    ahᵀ   = W_hᵀ hᵀ                 on the tensor cores
    s', r = the cell's time step    in registers
    hs[t], saved[t] = h', r         to the GPU's memory
    h     = h'                      to shared memory, for all warpgroups

The state s stays in registers from step to step. The projected inputs
ax[t + 1] are loaded while step t is computed. A masked step keeps s, and a step
that resets starts from s = 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.mosaic_gpu import exchange, registers, states
from lstm_jax.mosaic_gpu.limits import COLUMNS, UNITS, Plan
from lstm_jax.mosaic_gpu.thread_block import find_share, launch, start_loading


def forward_kernel(
  time_step: Any,
  plan: Plan,
  reverse: bool,
  save: bool,
  w_h: jax.Array,
  b: jax.Array,
  axs: jax.Array,
  state: Any,
  flags: jax.Array | None,
) -> tuple[jax.Array, Any, Any]:
  """Return (hs, last state, saved) of a layer.

  Args:
    time_step: the module of the cell's time step, such as `mosaic_gpu.lstm`.
    plan: how the layer is divided. H is its `units`, and B is a multiple of its
      `rows`.
    reverse: whether to run from the last time step to the first.
    save: whether to return what the backward kernel needs.
    w_h: [G, H, H]: for each gate, the weights of its units (rows) from h.
    b: biases, float32: [4, H], or [1, H] of a plain RNN.
    axs: projected inputs, [T, B, G, H], float32.
    state: before the first step, a tree of [B, H], float32.
    flags: those of `states`, [T, B], or None.

  Returns:
    hs, [T, B, H] in float32, where a masked step repeats the h before; the
    state after the last step; and what the backward kernel needs, a tree of
    [T, B/8, H, 8], or None.
  """
  length, batch, gates, units = axs.shape

  def kernel(w_h, b, axs, first, flags, hs, last, saved, memory, **scratch):
    weights, loaded = scratch.pop("weights"), scratch.pop("loaded")
    start_loading(plan, w_h, weights, loaded)
    share = find_share(plan)
    exchanged = exchange.Exchange(plan, share, **scratch)
    biases = [
      registers.read_units(b.at[k, share.units]) for k in range(b.shape[0])
    ]

    def place(t):
      return length - 1 - t if reverse else t

    def read_inputs(t):
      t = place(jnp.minimum(t, length - 1))
      ax = [
        [
          registers.read_transposed(axs.at[t, columns, gate, share.units])
          for gate in range(gates)
        ]
        for columns in share.columns
      ]
      return ax, states.read_flags(flags, t, share)

    def between_blocks(turn):
      return None if memory is None else memory.at[turn % 2, share.sequences]

    def send(state, flag, turn):
      # If step `turn` resets, it multiplies an h of 0.
      h = [blocks.h for blocks in states.unless_reset(state, flag)]
      exchanged.send([h], turn, between_blocks(turn))

    def multiply(turn):
      def products(*totals):
        def part(k, _):
          h = exchanged.operand(0, k, turn)  # of vector 0, the only one
          columns = pl.ds(k * UNITS, UNITS)
          for gate, total in enumerate(totals):
            w = weights.at[gate, share.units_of_block, columns]
            plgpu.wgmma(total, w, h)

        # Not unrolled, since the address of every product would take registers.
        lax.fori_loop(0, units // UNITS, part, None)
        plgpu.wgmma_wait(0)
        return [total[...] for total in totals]

      return pl.run_scoped(products, *registers.accumulators(gates, plan.rows))

    def step(t, carry):
      state, ax, flag = carry
      ahead = read_inputs(t + 1)
      ah = multiply(t)
      after, residuals = [], []
      for j, before in enumerate(states.unless_reset(state, flag)):
        ah_j = [registers.columns(total, j) for total in ah]
        blocks, saved_j = time_step.forward(ax[j], ah_j, biases, before)
        after.append(blocks)
        residuals.append(saved_j)
      after = states.unless_masked(after, state, flag)
      send(after, ahead[1], t + 1)
      # Write the outputs while the other warpgroups send their units of h.
      for columns, blocks in zip(share.columns, after, strict=True):
        target = hs.at[place(t), columns, share.units]
        registers.write_transposed(target, blocks.h)
      if saved is not None:
        for tile, saved_j in zip(share.tiles, residuals, strict=True):
          for ref, block in zip(saved, saved_j, strict=True):
            registers.write(ref.at[place(t), tile, share.units, :], block)
      exchanged.receive(between_blocks(t + 1))
      return after, *ahead

    state = states.read_state(first, share)
    ax, flag = read_inputs(0)
    send(state, flag, 0)
    exchanged.receive(between_blocks(0))
    plgpu.barrier_wait(loaded)
    state, _, _ = lax.fori_loop(0, length, step, (state, ax, flag))
    states.write_state(last, state, share)

  vector = jax.ShapeDtypeStruct((batch, units), jnp.float32)
  saved_shape = length, batch // COLUMNS, units, COLUMNS
  saved = jax.tree.map(
    lambda dtype: jax.ShapeDtypeStruct(saved_shape, dtype),
    time_step.Saved(*time_step.saved_dtypes(w_h.dtype)),
  )
  # Two buffers, in turns, through which a cluster's blocks send each other h.
  memory = jax.ShapeDtypeStruct((2, batch, 1, units), w_h.dtype)
  outputs = (
    jax.ShapeDtypeStruct((length, batch, units), jnp.float32),
    jax.tree.map(lambda _: vector, state),
    saved if save else None,
    memory if plan.cluster > 1 else None,
  )
  scratch = exchange.scratch(plan, 1, 1, w_h.dtype)  # for one vector, h
  arguments = w_h, b, axs, state, flags
  hs, last, saved, _ = launch(kernel, plan, outputs, scratch, *arguments)
  return hs, last, saved
