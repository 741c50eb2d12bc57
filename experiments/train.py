"""Train a language model on a text and watch it learn to write.

  python -m experiments.train

trains a character-level LSTM on Shakespeare's poems, prints the held-out loss
and a sample every so often, and leaves the curve, the samples and the
checkpoints in a folder under runs/. With --tokens=word it reads and writes word
by word. Every hyperparameter is a flag; recipes in experiments/recipes are read
by --flagfile. Ctrl-C and SIGTERM stop after the update under way; the same
command with --run goes on from there, or from the last look at the held-out
text if the process was killed. experiments/program.py lists the exit statuses.
"""

import shlex
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from experiments import run_folder
from experiments.claim import claimed
from experiments.config import (
  TrainConfig,
  model_config,
  optimizer_config,
  reading,
  regularizers,
)
from experiments.corpus import Corpus, read_corpus
from experiments.journal import Journal
from experiments.program import (
  SIGNALLED,
  Diverged,
  launch,
  plain_console,
  stoppable,
)
from experiments.progress import TrainingBar
from experiments.resume import Restored, restore
from experiments.train_flags import define_flags
from experiments.wording import loss_title, losses_told, tokens_told
from lstm_jax.language import (
  LanguageModel,
  Reading,
  Tokenizer,
  language_model,
  stateful_loss,
)
from lstm_jax.training import (
  TrainState,
  Update,
  begin_average,
  include,
  init_state,
  learnt,
  make_optimizer,
  make_update,
  train,
  wanders,
)

EARLY = 10, 30  # updates after which to look as well: the most happens there
OPENING = "Shall I"  # the prompt that the run suggests at its end
FINAL_LENGTH = 1000  # tokens of the last sample
PIECE = 256  # tokens of the watched text, whose gates TensorBoard shows


class Parts(NamedTuple):
  """What a configuration and its corpus make."""

  corpus: Corpus
  reading: Reading
  num_updates: int
  model: LanguageModel
  update: Update
  state: TrainState  # before the first update
  key_samples: jax.Array


class Result(NamedTuple):
  """What a run ends with."""

  folder: Path
  best_update: int
  held_out: float  # the best of what is watched, nats per token
  seconds: float  # of training
  stopped_by: signal.Signals | None = None  # before its end


def run(config: TrainConfig, console: Console) -> Result:
  """Train as `config` says, print what happens, and fill the run's folder.

  Raises:
    ValueError: the corpus, the folder or the configuration is not usable.
    Diverged: the loss is NaN or infinite; the best checkpoint is kept.
  """
  parts = make(config)
  corpus, state = parts.corpus, parts.state
  vocabulary = corpus.vocabulary
  with claimed(config, corpus.sha256) as (folder, goes_on):
    console.print(_heading(config, parts, folder), soft_wrap=True)
    quiet = config.quiet
    bar = TrainingBar(console, parts.num_updates, vocabulary.unit, quiet=quiet)
    description = run_folder.describe(config, vocabulary)
    watched = "development" if config.development else "held_out"
    piece = corpus.watched.tokens[:PIECE]
    journal = Journal(
      folder, console, bar, description, vocabulary, watched, piece, quiet
    )
    restored = None
    if goes_on:
      restored = restore(folder, parts.model, state, console)
    journal.go_on(restored)
    try:
      with bar, stoppable() as requests:
        stopped_by = _learn(config, parts, journal, restored, requests)
    except (Diverged, KeyboardInterrupt) as error:
      update = journal.best.update
      kept = f"the checkpoint of update {update}" if update else "no checkpoint"
      reason = error if isinstance(error, Diverged) else "interrupted"
      raise type(error)(f"{reason}; {kept} is kept in {folder}") from None
    finally:
      journal.close()
    return _end(config, parts, journal, console, stopped_by)


def make(config: TrainConfig) -> Parts:
  """Return the parts of a run.

  Raises:
    ValueError: the corpus or the configuration is not usable.
  """
  corpus = read_corpus(config)
  read = reading(config)
  num_updates = read.num_updates(corpus.training.tokens)
  sizes = model_config(config, corpus.vocabulary.size)
  model = language_model(sizes, regularizers=regularizers(config))
  rule = make_optimizer(optimizer_config(config), num_updates)
  key_init, key_samples = jax.random.split(jax.random.key(config.seed))
  params = jax.block_until_ready(model.init(key_init))  # or out of memory
  averaged = config.average > 0
  state = init_state(model, rule, params, config.num_streams, averaged=averaged)
  key_noise = jax.random.fold_in(key_init, 1)
  update = make_update(model, rule, key_noise, decay=config.average)
  return Parts(corpus, read, num_updates, model, update, state, key_samples)


def _learn(
  config: TrainConfig,
  parts: Parts,
  journal: Journal,
  restored: Restored | None,
  requests: list[signal.Signals],
) -> signal.Signals | None:
  """Make the updates that are left; return the signal that stopped them."""
  corpus, model = parts.corpus, parts.model
  state, average = parts.state, None
  if restored:
    state, average = restored.state, restored.average
  made = int(state.step)

  def write(title, params, step):
    key = parts.key_samples
    key = jax.random.fold_in(key, step) if step else key
    journal.sample(
      title, model, params, key, config.sample_length, config.temperature
    )

  if not restored:
    write("untrained", state.params, 0)
  epochs = parts.reading.epochs(corpus.training.tokens)
  updates = train(parts.update, state, epochs)
  journal.start_clock()
  for step, (state, metrics) in enumerate(updates, start=made + 1):
    if average:
      average = include(average, state.params)
    journal.update(step, metrics)
    last = step == parts.num_updates
    look = last or step in EARLY or step % config.eval_every == 0
    stop = requests and not last
    params = average.params if average else learnt(state)
    if look:
      journal.report(step)
      nats = stateful_loss(model, params, corpus.watched.tokens)
      best = journal.watch(step, nats, params)
      epoch = config.num_epochs * step / parts.num_updates
      title = (
        f"update {step}, epoch {epoch:.1f}: {journal.name} "
        f"{loss_title(nats, corpus.vocabulary)}"
        f"{', the best so far' * best}"
      )
      after = config.average_after
      if after and not average and wanders(journal.looks, after):
        average = begin_average(state.params)
        title += "; from here on the weights are averaged"
      write(title, params, step)
    if look or stop:
      journal.save(step, params, state, average)
      journal.start_clock()
    if stop:
      return requests[0]
  return None


def _heading(config: TrainConfig, parts: Parts, folder: Path) -> str:
  """Return what a run says of itself at its beginning."""
  corpus = parts.corpus
  count = sum(leaf.size for leaf in jax.tree.leaves(parts.state.params))
  return (
    f"model       {config.cell}, {config.num_layers} × {config.hidden_size} "
    f"hidden units, {count:,} parameters\n"
    f"corpus      {config.corpus}: {len(corpus.text):,} characters, "
    f"{tokens_told(corpus.vocabulary, corpus.held_out.tokens)}\n"
    f"training    {config.num_epochs} epochs of "
    f"{len(corpus.training.tokens):,} tokens, {parts.num_updates:,} updates\n"
    f"device      {run_folder.device_name()}\n"
    f"run folder  {folder}"
  )


def _end(
  config: TrainConfig,
  parts: Parts,
  journal: Journal,
  console: Console,
  stopped_by: signal.Signals | None,
) -> Result:
  """Say what a run came to; mark it as finished if it is."""
  corpus, vocabulary = parts.corpus, parts.corpus.vocabulary
  folder, best = journal.folder, journal.best
  result = Result(folder, best.update, best.nats, journal.seconds, stopped_by)
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
  console.print(
    f"\n{ends}, {journal.seconds:.0f} s of training\n"
    f"{folder} holds config.json, metrics.jsonl, loss.png, samples.txt and "
    "checkpoints/; to go on writing:\n"
    f"  python -m experiments.sample --run={shlex.quote(str(folder))} {prompt}",
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
  """Read the flags and run."""
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  console = plain_console()
  result = run(config, console)
  if result.stopped_by is None:
    return 0
  again = [*sys.argv[1:], f"--run={result.folder}"]
  again += ["--nooverwrite"] if config.overwrite else []
  console.print(
    f"to go on training:\n  python -m experiments.train {shlex.join(again)}",
    soft_wrap=True,
  )
  return SIGNALLED + result.stopped_by


if __name__ == "__main__":
  FLAGS = define_flags()
  launch(main)
