"""Train a language model on a text and watch it learn to write.

  python -m experiments.train

trains a character-level LSTM on Shakespeare's poems, prints the held-out loss
and a sample every so often, and leaves the curve, the samples and the
checkpoints in a folder under runs/. With --tokenizer=word it reads and writes
word by word. Every hyperparameter is a flag; recipes in experiments/recipes are
read by --flagfile. Ctrl-C and SIGTERM stop after the update under way; the same
command with --run goes on from there, or from the last look at the held-out
text if the process was killed. experiments/cli.py lists the exit statuses.
"""

import shlex
import signal
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags
from rich.console import Console

from experiments.cli import (
  SIGNALLED,
  Diverged,
  launch,
  plain_console,
  stoppable,
)
from experiments.progress import TrainingBar
from experiments.trainer import multihost, run_dir
from experiments.trainer.checkpoint import Restored, restore
from experiments.trainer.claim import to_go_on
from experiments.trainer.config import SKIPPED, TrainConfig, is_evaluation_step
from experiments.trainer.flags import define_flags
from experiments.trainer.format import loss_title, losses_told
from experiments.trainer.logger import RunLogger
from experiments.trainer.onlooker import claimed_by_first, journal_class
from experiments.trainer.placement import placed, whole
from experiments.trainer.resources import available, dry_run, that_fits
from experiments.trainer.setup import TrainSetup, heading, make
from experiments.trainer.tracing import traced
from lstm_jax.language import Tokenizer, stateful_loss
from lstm_jax.training import begin_average, include, learnt, train, wanders

OPENING = "Shall I"  # the prompt that the run suggests at its end
FINAL_LENGTH = 1000  # tokens of the last sample
PIECE = 256  # tokens of the watched text, whose gates TensorBoard shows


class Result(NamedTuple):
  """What a run ends with."""

  directory: Path
  best_update: int
  held_out: float  # the best of what is watched, nats per token
  seconds: float  # of training
  stopped_by: signal.Signals | None = None  # before its end


def run(config: TrainConfig, console: Console, profile: int = 0) -> Result:
  """Train as `config` says, print what happens, and fill the run's folder.

  Args:
    config: of the run.
    console: where it is told.
    profile: updates to trace into the folder.

  Raises:
    ValueError: the corpus, the folder or the configuration is not usable, or
      the device has too little memory.
    Diverged: the loss is NaN or infinite; the best checkpoint is kept.
  """
  parts = make(config)
  corpus, state = parts.corpus, parts.state
  vocabulary = corpus.vocabulary
  with claimed_by_first(config, corpus.sha256) as (directory, goes_on):
    console.print(
      f"{heading(config, parts)}\nrun folder  {directory}", soft_wrap=True
    )
    quiet = config.quiet
    bar = TrainingBar(console, parts.num_steps, vocabulary.unit, quiet=quiet)
    description = run_dir.describe(config, vocabulary)
    watched = "development" if config.development else "held_out"
    piece = corpus.watched.tokens[:PIECE]
    skips = SKIPPED if config.nonfinite == "skip" else 0
    of = description, vocabulary, watched, piece, skips, quiet
    journal = journal_class()(directory, console, bar, *of)
    restored = None
    if goes_on:
      restored = restore(directory, state, console)
      found = int(restored.state.step) if restored else 0
      multihost.check_same(directory, found)
    journal.go_on(restored)
    try:
      with bar, stoppable() as requests:
        stopped_by = _learn(config, parts, journal, restored, requests, profile)
    except (Diverged, KeyboardInterrupt) as error:
      update = journal.best.update
      kept = f"the checkpoint of update {update}" if update else "no checkpoint"
      reason = error if isinstance(error, Diverged) else "interrupted"
      raise type(error)(f"{reason}; {kept} is kept in {directory}") from None
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error) or parts.mesh:
        raise
      fits = that_fits(config, parts, available())
      raise ValueError(f"out of memory: {fits}") from None
    finally:
      journal.close()
    return _end(config, parts, journal, console, stopped_by)


def _learn(
  config: TrainConfig,
  parts: TrainSetup,
  journal: RunLogger,
  restored: Restored | None,
  requests: list[signal.Signals],
  profile: int,
) -> signal.Signals | None:
  """Make the updates that are left; return the signal that stopped them."""
  corpus, model = parts.corpus, parts.model
  state, average = parts.state, None
  if restored:
    state, average = restored.state, restored.average
  made = int(state.step)
  state, average = placed(parts.shardings, state, average)

  def write(title, params, step):
    key = parts.key_samples
    key = jax.random.fold_in(key, step) if step else key
    journal.sample(
      title, model, params, key, config.sample_length, config.temperature
    )

  if not restored:
    write("untrained", parts.state.params, 0)
  epochs = parts.reading.epochs(corpus.training.tokens)
  updates = train(parts.update, state, epochs)
  updates = traced(updates, journal.directory / run_dir.PROFILE, profile)
  journal.start_clock()
  for step, (state, metrics) in enumerate(updates, start=made + 1):
    if average:
      average = include(average, state.params, metrics.grad_norm)
    journal.update(step, metrics)
    last = step == parts.num_steps
    look = last or is_evaluation_step(config, step)
    asked = multihost.asked(requests, look)
    stop = None if last else asked
    params = average.params if average else learnt(state)
    if look or stop:
      params = whole(parts.shardings, params)
    if look:
      journal.report(step)
      nats = stateful_loss(model, params, corpus.watched.tokens)
      nats = multihost.of_first(nats)
      best = journal.watch(step, nats, params)
      epoch = config.num_epochs * step / parts.num_steps
      title = (
        f"update {step}, epoch {epoch:.1f}: {journal.name} "
        f"{loss_title(nats, corpus.vocabulary)}"
        f"{', the best so far' * best}"
      )
      after = config.asgd_patience
      if after and not average and wanders(journal.looks, after):
        average = begin_average(state.params)
        title += "; from here on the weights are averaged"
      write(title, params, step)
    if look or stop:
      journal.save(step, params, *whole(parts.shardings, (state, average)))
      journal.start_clock()
    if stop:
      return stop
  return None


def _end(
  config: TrainConfig,
  parts: TrainSetup,
  journal: RunLogger,
  console: Console,
  stopped_by: signal.Signals | None,
) -> Result:
  """Say what a run came to; mark it as finished if it is."""
  corpus, vocabulary = parts.corpus, parts.corpus.vocabulary
  directory, best = journal.directory, journal.best
  result = Result(
    directory, best.update, best.nats, journal.seconds, stopped_by
  )
  if stopped_by:
    console.print(f"\n{stopped_by.name}: stopped after update {journal.step}")
  if not best.update:
    return result
  ends = f"best {journal.name} loss "
  ends += losses_told(vocabulary, corpus.watched.text, best.nats)
  ends += f" at update {best.update}"
  if not stopped_by:
    model, key = parts.model, parts.key_samples
    if config.development:
      held_out = stateful_loss(model, best.params, corpus.held_out.tokens)
      journal.final(held_out)
      told = losses_told(vocabulary, corpus.held_out.text, held_out)
      ends += f", held-out loss {told}"
    title = f"the best, of update {best.update}: "
    title += loss_title(best.nats, vocabulary)
    journal.sample(
      title, model, best.params, key, FINAL_LENGTH, config.temperature
    )
    journal.finish()
  prompt = f'--prompt="{OPENING}"' if _knows(vocabulary, OPENING) else ""
  if journal.skipped:
    ends += f", {journal.skipped} updates skipped as not finite"
  console.print(
    f"\n{ends}, {journal.seconds:.0f} s of training\n"
    f"{directory} holds config.json, metrics.jsonl, loss.png, samples.txt and "
    "checkpoints/; to go on writing:\n"
    "  python -m experiments.sample "
    f"--run={shlex.quote(str(directory))} {prompt}",
    soft_wrap=True,
  )
  return result


def _knows(vocabulary: Tokenizer, text: str) -> bool:
  try:
    vocabulary.encode_known(text)
  except ValueError:
    return False
  return True


def main() -> int:
  """Read the flags, join the other processes if there are any, and run."""
  multihost.join(**{flag.name: flag.value for flag in PROCESSES})
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  console = plain_console()
  console.quiet = not multihost.is_first()
  if DRY_RUN.value:
    dry_run(config, console)
    return 0
  result = run(config, console, PROFILE.value)
  if result.stopped_by is None:
    return 0
  console.print(to_go_on("train", config, result.directory), soft_wrap=True)
  return SIGNALLED + result.stopped_by


if __name__ == "__main__":
  FLAGS, PROCESSES = define_flags(), multihost.define_flags()
  DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Say what the run would be and need, and stop."
  )
  PROFILE = flags.DEFINE_integer(
    "profile", 0, "Updates of a profiler's trace in the run's folder.", 0
  )
  launch(main)
