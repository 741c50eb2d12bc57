"""Where a run starts: at a checkpoint, or at its initial weights."""

from rich.console import Console

from experiments.trainer import distributed
from experiments.trainer.checkpoint import restore
from experiments.trainer.format import counted, format_loss
from experiments.trainer.logger import RunLogger
from experiments.trainer.run_dir import OpenedRun
from experiments.trainer.setup import TrainSetup, to_mesh, to_one_device
from experiments.trainer.trained import Trained
from lstm_jax.training import TrainState


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
    with distributed.failing_together():
      restored = restore(opened.directory, setup.state_like, console)
    step = int(restored.state.step) if restored else 0
    distributed.check_same_checkpoint(opened.directory, step)
  with distributed.failing_together():
    logger.resume(restored)
  if restored:
    if opened.extended_from is not None:
      before, epochs = opened.extended_from, setup.config.batching.num_epochs
      how = f"by --patience={setup.config.evaluation.patience}"
      if epochs > before:
        how = f"from {counted(before, 'epoch')} to {epochs}"
      console.print(
        f"extended    {how}; the schedule of the learning rate now has "
        f"{setup.num_steps} steps",
        soft_wrap=True,
      )
    return to_mesh(setup, restored.state)
  if not pretrained:
    state = setup.make_state()
    params = to_one_device(setup, state.params)
    with distributed.failing_together():
      logger.sample_during_training("untrained", params)
    return state
  state = setup.make_state(pretrained.params)
  line = f"those of {setup.config.init_from}, step {pretrained.step}"
  if pretrained.val_loss is not None:
    loss = format_loss(pretrained.val_loss, pretrained.tokenizer)
    line += f", validation {loss}"
  console.print(f"weights     {line}", soft_wrap=True)
  params = to_one_device(setup, state.params)
  with distributed.failing_together():
    logger.sample_during_training(f"step 0, epoch 0.0: {line}", params)
  return state
