"""The backward kernel: all time steps of a layer in reverse, in one launch.

Each thread block loads W_h, or in a cluster its rows of W_h, into shared memory
at the start, and computes for its sequences

  for t = T … 1
    dh     ← dh + d(hs[t])
    da, ds = the backward of the cell's time step    in registers
    das[t] = da            to shared memory, for all warpgroups,
                           and to the GPU's memory
    dhᵀ    ← W_h daᵀ + …   on the tensor cores

where ds is the cotangent of the state before the step without the part through
h W_h, and … is the h of ds, transposed. The gradients of the weights and of the
inputs are computed from all das in one product each, outside of the kernel. Of
the E cotangents in da, the first G are those of h W_h, and only they are
multiplied by W_h (G and E: `limits.Counts`). At a masked step, hs[t] is the h
before the step: da is 0, and the cotangent of the state after the step,
including d(hs[t]), becomes that of the state before it. At a step that resets,
the whole cotangent of the state before it is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.mosaic_gpu import exchange, registers, states
from lstm_jax.mosaic_gpu.limits import UNITS, Plan
from lstm_jax.mosaic_gpu.thread_block import find_share, launch, start_loading


def backward_kernel(
  time_step: Any,
  plan: Plan,
  reverse: bool,
  w_h: jax.Array,
  saved: Any,
  d_hs: jax.Array,
  d_last: Any,
  flags: jax.Array | None,
) -> tuple[jax.Array, Any]:
  """Return (das, d_state before the first step) of a layer.

  Args:
    time_step: as in `forward_kernel`.
    plan: as in `forward_kernel`.
    reverse: whether the forward ran from the last time step to the first; this
      kernel runs the other way.
    w_h: [G, H, H]: for each gate, the weights from h (rows) to its units
      (columns), the transpose of each gate's matrix in `forward_kernel`.
    saved: the `Saved` of the time step, each [T, B/8, H, 8].
    d_hs: cotangent of the outputs, [T, B, H], float32.
    d_last: cotangent of the last state, a tree of [B, H], float32.
    flags: as in `forward_kernel`.

  Returns:
    das, [T, B, E, H] in the dtype of w_h: the cotangents that the backward of
    the time step returns; and a tree of [B, H], float32.
  """
  length, batch, units = d_hs.shape
  gates, cotangents, _ = time_step.COUNTS

  def kernel(w_h, saved, d_hs, d_last, flags, das, d_first, **scratch):
    weights, loaded = scratch.pop("weights"), scratch.pop("loaded")
    start_loading(plan, w_h, weights, loaded)
    share = find_share(plan)
    exchanged = exchange.Exchange(plan, share, **scratch)

    def place(t):  # in the arrays over time; the kernel's t goes up from 0
      return t if reverse else length - 1 - t

    def read_inputs(t):
      t = place(jnp.minimum(t, length - 1))
      residuals = [
        type(saved)(
          *(registers.read(ref.at[t, tile, share.units, :]) for ref in saved)
        )
        for tile in share.tiles
      ]
      d_out = states.read_state(d_hs.at[t], share)
      return residuals, d_out, states.read_flags(flags, t, share)

    def multiply(turn):
      parts = units // UNITS

      def product(total):
        def part(k, _):
          gate, columns = k // parts, pl.ds(k % parts * UNITS, UNITS)
          w = weights.at[gate, share.units_of_block, columns]
          plgpu.wgmma(total, w, exchanged.operand(gate, k % parts, turn))

        lax.fori_loop(0, gates * parts, part, None)
        plgpu.wgmma_wait(0)
        return total[...]

      return pl.run_scoped(product, *registers.accumulators(1, plan.rows))

    def step(t, carry):
      d_state, residuals, d_out, flag = carry
      ahead = read_inputs(t + 1)
      d_after = [
        d._replace(h=d.h + more) for d, more in zip(d_state, d_out, strict=True)
      ]
      backward = [
        time_step.backward(*args)
        for args in zip(residuals, d_after, strict=True)
      ]
      da = [blocks for blocks, _ in backward]
      zeros = jax.tree.map(jnp.zeros_like, da)
      da = states.unless_masked(da, zeros, flag)
      target = das.at[place(t), share.sequences]
      exchanged.send(
        [list(blocks) for blocks in zip(*da, strict=True)], t, target
      )
      exchanged.receive(target)
      through_w_h = multiply(t)
      d_before = [
        d._replace(h=d.h + registers.columns(through_w_h, j))
        for j, (_, d) in enumerate(backward)
      ]
      d_before = states.unless_masked(d_before, d_after, flag)
      return states.unless_reset(d_before, flag), *ahead

    d_state = states.read_state(d_last, share)
    ahead = read_inputs(0)
    plgpu.barrier_wait(loaded)
    d_state, *_ = lax.fori_loop(0, length, step, (d_state, *ahead))
    states.write_state(d_first, d_state, share)
    plgpu.wait_smem_to_gmem(0)  # the last copies of das

  vector = jax.ShapeDtypeStruct((batch, units), jnp.float32)
  outputs = (
    jax.ShapeDtypeStruct((length, batch, cotangents, units), w_h.dtype),
    jax.tree.map(lambda _: vector, d_last),
  )
  scratch = exchange.scratch(plan, cotangents, gates, w_h.dtype)
  arguments = w_h, saved, d_hs, d_last, flags
  return launch(kernel, plan, outputs, scratch, *arguments)
