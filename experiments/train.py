"""Train a language model on a text and watch it learn to write.

  python -m experiments.train

trains a character-level LSTM on Shakespeare's poems, prints the held-out loss
and a sample every so often, and leaves the curve, the samples and the best
checkpoint in a folder under runs/. With --tokens=word it reads and writes word
by word. Every hyperparameter is a flag; recipes in experiments/recipes are read
by --flagfile. Ctrl-C stops after the update under way and keeps the best so
far. experiments/program.py lists the exit statuses.
"""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from experiments import distributed, run_folder
from experiments.config import (
  TrainConfig,
  make_vocabulary,
  model_config,
  optimizer_config,
  reading,
  regularizers,
)
from experiments.journal import Journal
from experiments.placement import begin, mesh_of, mesh_told, whole
from experiments.program import (
  INTERRUPTED,
  Diverged,
  launch,
  plain_console,
)
from experiments.progress import TrainingBar
from experiments.train_flags import define_flags
from experiments.wording import loss_title, losses_told, tokens_told
from lstm_jax.language import (
  Tokenizer,
  language_model,
  read_text,
  split,
  stateful_loss,
)
from lstm_jax.training import (
  begin_average,
  include,
  learnt,
  make_optimizer,
  train,
  wanders,
)

EARLY = 10, 30  # updates after which to look as well: the most happens there
OPENING = "Shall I"  # the prompt that the run suggests at its end
FINAL_LENGTH = 1000  # tokens of the last sample


class Result(NamedTuple):
  """What a run ends with."""

  folder: Path
  best_update: int
  held_out: float  # the best of what is watched, nats per token
  interrupted: bool
  seconds: float  # of training


def run(config: TrainConfig, console: Console) -> Result:
  """Train as `config` says, print what happens, and fill the run's folder.

  Raises:
    ValueError: the corpus, the folder or the configuration is not usable.
    Diverged: the loss is NaN or infinite; the best checkpoint is kept.
  """
  text = read_text(config.corpus)
  learnt_text, held_out_text = split(text, config.split)
  watched_text = held_out_text
  if config.development:
    learnt_text, watched_text = split(learnt_text, config.development)
  vocabulary = make_vocabulary(config, text, learnt_text)
  training, watched, held_out = (
    vocabulary.encode(part)
    for part in (learnt_text, watched_text, held_out_text)
  )
  if min(len(watched), len(held_out)) < 2:
    raise ValueError(
      f"the corpus is too short: what is held out has {len(held_out)} tokens, "
      f"what is watched {len(watched)}, and each needs at least 2"
    )
  read = reading(config)
  num_updates = read.num_updates(training)
  mesh = mesh_of(config)
  model = language_model(
    model_config(config, vocabulary.size),
    regularizers=regularizers(config),
    groups=mesh.size if mesh else 1,
  )
  rule = make_optimizer(optimizer_config(config), num_updates)
  key_init, key_samples = jax.random.split(jax.random.key(config.seed))
  key_noise = jax.random.fold_in(key_init, 1)
  params = jax.block_until_ready(model.init(key_init))  # or out of memory
  folder = distributed.by_first(lambda: run_folder.create(config))

  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  console.print(
    f"model       {config.cell}, {config.num_layers} × {config.hidden_size} "
    f"hidden units, {count:,} parameters\n"
    f"corpus      {config.corpus}: {len(text):,} characters, "
    f"{tokens_told(vocabulary, held_out)}\n"
    f"training    {config.num_epochs} epochs of {len(training):,} tokens, "
    f"{num_updates:,} updates\n"
    f"device      {run_folder.device_name()}{mesh_told(mesh)}\n"
    f"run folder  {folder}",
    soft_wrap=True,
  )
  name = "development" if config.development else "held-out"
  bar = TrainingBar(console, num_updates, vocabulary.unit)
  description = run_folder.describe(config, vocabulary)
  journal = Journal(
    folder,
    console,
    bar,
    params,
    description,
    vocabulary,
    name.replace("-", "_"),
  )
  write = partial(
    journal.sample,
    model=model,
    temperature=config.temperature,
    length=config.sample_length,
  )
  write("untrained", params=params, key=key_samples)
  state, step_of = begin(config, mesh, model, rule, params, key_noise)
  updates = train(step_of, state, read.epochs(training))
  average, looks, stop = None, [], False
  try:
    with bar, _interruptible() as requests:
      journal.resume()
      for step, (state, metrics) in enumerate(updates, start=1):
        if average:
          average = include(average, state.params)
        journal.update(step, metrics)
        regular = step % config.eval_every == 0 or step == num_updates
        look = regular or step in EARLY
        stop = distributed.stops(bool(requests), look)
        if look or stop:
          journal.report(step)
          params = whole(mesh, average.params if average else learnt(state))
          nats = distributed.of_first(stateful_loss(model, params, watched))
          best = journal.watch(step, nats, params)
          epoch = config.num_epochs * step / num_updates
          title = (
            f"update {step}, epoch {epoch:.1f}: {name} "
            f"{loss_title(nats, vocabulary)}{', the best so far' * best}"
          )
          looks.append(nats)
          after = config.average_after
          if after and not average and wanders(looks, after):
            average = begin_average(state.params)
            title += "; from here on the weights are averaged"
          key = jax.random.fold_in(key_samples, step)
          write(title, params=params, key=key)
          journal.resume()
        if stop:
          break
  except (Diverged, KeyboardInterrupt) as error:
    update = journal.best.update
    kept = f"the checkpoint of update {update}" if update else "no checkpoint"
    reason = error if isinstance(error, Diverged) else "interrupted"
    raise type(error)(f"{reason}; {kept} is kept in {folder}") from None
  finally:
    journal.close()

  nats, update, best_params = journal.best
  of_held_out = ""
  if config.development:
    reported = stateful_loss(model, best_params, held_out)
    journal.final(reported)
    losses = losses_told(vocabulary, held_out_text, reported)
    of_held_out = f", held-out loss {losses}"
  prompt = f'--prompt="{OPENING}"' if _knows(vocabulary, OPENING) else ""
  title = f"the best, of update {update}: {loss_title(nats, vocabulary)}"
  write(title, params=best_params, key=key_samples, length=FINAL_LENGTH)
  losses = losses_told(vocabulary, watched_text, nats)
  console.print(
    f"\n{'interrupted; ' * stop}best {name} loss {losses} "
    f"at update {update}"
    f"{of_held_out}, "
    f"{journal.seconds:.0f} s of training\n"
    f"{folder} holds config.json, metrics.jsonl, loss.png, samples.txt and "
    "checkpoints/; to go on writing:\n"
    f"  python -m experiments.sample --run={shlex.quote(str(folder))} {prompt}",
    soft_wrap=True,
  )
  return Result(folder, update, nats, stop, journal.seconds)


def _knows(vocabulary: Tokenizer, text: str) -> bool:
  try:
    vocabulary.encode_known(text)
  except ValueError:
    return False
  return True


@contextmanager
def _interruptible() -> Iterator[list[int]]:
  """Turn the first Ctrl-C into a request to stop; a second one interrupts."""
  requests: list[int] = []

  def request(signum, frame):
    del frame
    requests.append(signum)
    signal.signal(signal.SIGINT, previous)

  previous = signal.signal(signal.SIGINT, request)
  try:
    yield requests
  finally:
    signal.signal(signal.SIGINT, previous)


def main() -> int:
  """Read the flags, join the other processes if there are any, and run."""
  distributed.join(**{flag.name: flag.value for flag in PROCESSES})
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  console = plain_console()
  console.quiet = not distributed.is_first()
  result = run(config, console)
  return INTERRUPTED if result.interrupted else 0


if __name__ == "__main__":
  FLAGS, PROCESSES = define_flags(), distributed.define_flags()
  launch(main)
