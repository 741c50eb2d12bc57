"""Time and depth: `unroll`, both directions, stacks, dropout and zoneout."""

from lstm_jax.sequence import regularize as regularize
from lstm_jax.sequence._unroll import UnrollOptions as UnrollOptions
from lstm_jax.sequence._unroll import unroll as unroll
from lstm_jax.sequence.adjoint import Adjoint as Adjoint
from lstm_jax.sequence.adjoint import Autodiff as Autodiff
from lstm_jax.sequence.adjoint import Explicit as Explicit
from lstm_jax.sequence.adjoint import Step as Step
from lstm_jax.sequence.bidirectional import Directions as Directions
from lstm_jax.sequence.bidirectional import unroll_both as unroll_both
from lstm_jax.sequence.cotangents import state_cotangents as state_cotangents
from lstm_jax.sequence.implementation import Implementation as Implementation
from lstm_jax.sequence.stack import init_stack as init_stack
from lstm_jax.sequence.stack import initial_stack_state as initial_stack_state
from lstm_jax.sequence.stack import unroll_stack as unroll_stack
from lstm_jax.sequence.wrappers import masked as masked
from lstm_jax.sequence.wrappers import resettable as resettable
from lstm_jax.sequence.wrappers import zoneout as zoneout
