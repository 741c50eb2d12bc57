"""Time and depth: `unroll` and stacks of layers."""

from lstm_jax.sequence.stack import unroll_stack as unroll_stack
from lstm_jax.sequence.unroll import unroll as unroll
