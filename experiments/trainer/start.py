"""Where a run starts: at a checkpoint, or at its initial weights."""

from rich.console import Console

from experiments.trainer import multihost
from experiments.trainer.checkpoint import restore
from experiments.trainer.logger import RunLogger
from experiments.trainer.setup import TrainSetup
from lstm_jax.training import TrainState


def initial_state(
  setup: TrainSetup,
  logger: RunLogger,
  console: Console,
  resuming: bool,
) -> TrainState:
  """Return the restored state, or the initial one after a sample of it."""
  restored = None
  if resuming:
    restored = restore(logger.directory, setup.state_like, console)
    step = int(restored.state.step) if restored else 0
    multihost.check_same_checkpoint(logger.directory, step)
  logger.resume(restored)
  if restored:
    return restored.state
  state = setup.make_state()
  logger.sample_during_training("untrained", state.params)
  return state
