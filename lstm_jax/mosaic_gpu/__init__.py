"""GPU kernels that run a whole sequence in one launch, for Hopper GPUs.

XLA runs a scan as a loop that launches several kernels at every time step, and
reads the recurrent weights anew in each. These kernels are launched once a
sequence, forward and backward, and keep the weights on the chip. They are
written in Mosaic GPU, the language of JAX's Pallas for Hopper.

  limits         how a layer is divided, and how large it may be
  lstm, gru, rnn  one time step of a cell, forward and backward
  forward        the forward kernel
  backward       the backward kernel
  exchange       how the parts of a layer send each other h, or da
  thread_block   the launch, and the share of each warpgroup (128 threads)
  states         states in registers, masked steps and resets
  registers      blocks of numbers in registers: read, write, multiply

`sequence.fused` runs them for `unroll`. All modules but `limits` are imported
only where a kernel is asked for.
"""
