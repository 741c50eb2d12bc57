"""Where a run starts: at a checkpoint, or at its initial weights."""

from dataclasses import replace

from rich.console import Console

from experiments.trainer import multihost
from experiments.trainer.checkpoint import restore
from experiments.trainer.format import counted, format_loss
from experiments.trainer.logger import RunLogger
from experiments.trainer.run_dir import OpenedRun
from experiments.trainer.setup import TrainSetup, to_mesh, to_one_device
from experiments.trainer.trained import Trained
from lstm_jax.training import TrainState
from lstm_jax.training.optimizer import learning_rate


def initial_state(
  setup: TrainSetup,
  logger: RunLogger,
  console: Console,
  opened: OpenedRun,
  pretrained: Trained | None,
) -> TrainState:
  """Return the state of the newest usable checkpoint, or the initial one.

  If the run starts from initial weights, a sample of them is drawn. On a mesh,
  the state is laid out as the training needs it.

  Args:
    setup: of the run.
    logger: of the run; it resumes at the step of the state.
    console: prints where the run starts.
    opened: the run directory, which says whether there is a run to resume.
    pretrained: has the initial weights; None for random ones.

  Raises:
    CheckpointError: there are checkpoints, and none can be used.
    ValueError: the processes see different checkpoints, or another process has
      raised an error.
  """
  restored = None
  if opened.resuming:
    with multihost.failing_together():
      restored = restore(opened.directory, setup.state_like, console)
    step = int(restored.state.step) if restored else 0
    multihost.check_same_checkpoint(opened.directory, step)
  with multihost.failing_together():
    logger.resume(restored)
  if restored:
    if opened.extended_from is not None:
      skipped = restored.progress.num_skipped
      line = describe_extension(setup, step, opened.extended_from, skipped)
      console.print(f"extended    {line}", soft_wrap=True)
    return to_mesh(setup, restored.state)
  if not pretrained:
    state = setup.make_state()
    params = to_one_device(setup, state.params)
    with multihost.failing_together():
      logger.sample_during_training("untrained", params)
    return state
  state = setup.make_state(pretrained.params)
  line = f"those of {setup.config.init_from}, step {pretrained.step}"
  if pretrained.val_loss is not None:
    loss = format_loss(pretrained.val_loss, pretrained.tokenizer)
    line += f", validation {loss}"
  console.print(f"weights     {line}", soft_wrap=True)
  params = to_one_device(setup, state.params)
  with multihost.failing_together():
    logger.sample_during_training(f"step 0, epoch 0.0: {line}", params)
  return state


def describe_extension(
  setup: TrainSetup, step: int, num_epochs: int, skipped: int
) -> str:
  """Return how a run continues with more epochs or another patience.

  Args:
    setup: of the extended run.
    step: training steps made.
    num_epochs: epochs of the run before it was extended.
    skipped: training steps that --nonfinite=skip has skipped; the schedule of
      the learning rate does not advance at them.
  """
  config, (_, tokens, gap) = setup.config, setup.corpus.train
  batching = replace(config.batching, num_epochs=num_epochs)
  num_steps = batching.num_steps(tokens, config.seed, gap)
  before = learning_rate(config.optimizer, num_steps)  # the earlier schedule
  updates = step - skipped
  rates = before(updates - 1), setup.schedule(updates)
  last = setup.schedule(setup.num_steps - 1 - skipped)
  reached, next_rate, last_rate = (f"{float(r):.3g}" for r in (*rates, last))
  change = f"at --patience={config.evaluation.patience}"
  if config.batching.num_epochs > num_epochs:
    change = f"from {counted(num_epochs, 'epoch')} to "
    change += f"{config.batching.num_epochs}"
  return (
    f"{change}: the learning rate was {reached} at step {step} of {num_steps}; "
    f"it is {next_rate} at step {step + 1} of {setup.num_steps}, and "
    f"{last_rate} at the last"
  )
