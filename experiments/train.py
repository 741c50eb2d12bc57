"""Train a language model on a text and watch it learn to write.

  python -m experiments.train

trains a character-level LSTM on Shakespeare's poems, prints the held-out loss
and a sample every so often, and leaves the curve, the samples and the best
checkpoint in a folder under runs/. With --tokens=word it reads and writes word
by word. Every hyperparameter is a flag; recipes in experiments/recipes are read
by --flagfile. Ctrl-C stops after the update under way and keeps the best so
far. experiments/program.py lists the exit statuses.
"""

import math
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import jax
import numpy as np
from absl import flags
from rich.console import Console

from experiments import run_folder
from experiments.config import (
  CELLS,
  COMPUTE_DTYPES,
  Tokens,
  TrainConfig,
  make_vocabulary,
  model_config,
  optimizer_config,
  reading,
  regularizers,
)
from experiments.journal import Journal, loss_title, perplexity
from experiments.program import (
  INTERRUPTED,
  LARGEST,
  Diverged,
  finite,
  launch,
  plain_console,
)
from experiments.progress import TrainingBar
from lstm_jax.language import (
  Tokenizer,
  language_model,
  read_text,
  split,
  stateful_loss,
)
from lstm_jax.language.evaluate import nats_per_character
from lstm_jax.training import (
  begin_average,
  include,
  init_state,
  learnt,
  make_optimizer,
  make_update,
  optimizer,
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
  model = language_model(
    model_config(config, vocabulary.size), regularizers=regularizers(config)
  )
  rule = make_optimizer(optimizer_config(config), num_updates)
  key_init, key_samples = jax.random.split(jax.random.key(config.seed))
  key_noise = jax.random.fold_in(key_init, 1)
  params = jax.block_until_ready(model.init(key_init))  # or out of memory
  folder = run_folder.create(config)

  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  console.print(
    f"model       {config.cell}, {config.num_layers} × {config.hidden_size} "
    f"hidden units, {count:,} parameters\n"
    f"corpus      {config.corpus}: {len(text):,} characters, "
    f"{_tokens(vocabulary, held_out)}\n"
    f"training    {config.num_epochs} epochs of {len(training):,} tokens, "
    f"{num_updates:,} updates\n"
    f"device      {run_folder.device_name()}\n"
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
  state = init_state(
    model, rule, params, config.num_streams, averaged=config.average > 0
  )
  step_of = make_update(model, rule, key_noise, decay=config.average)
  updates = train(step_of, state, read.epochs(training))
  average, looks = None, []
  try:
    with bar, _interruptible() as requests:
      journal.resume()
      for step, (state, metrics) in enumerate(updates, start=1):
        if average:
          average = include(average, state.params)
        journal.update(step, metrics)
        regular = step % config.eval_every == 0 or step == num_updates
        if regular or step in EARLY or requests:
          journal.report(step)
          params = average.params if average else learnt(state)
          nats = stateful_loss(model, params, watched)
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
        if requests:
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
    losses = _losses(vocabulary, held_out_text, reported)
    of_held_out = f", held-out loss {losses}"
  prompt = f'--prompt="{OPENING}"' if _knows(vocabulary, OPENING) else ""
  title = f"the best, of update {update}: {loss_title(nats, vocabulary)}"
  write(title, params=best_params, key=key_samples, length=FINAL_LENGTH)
  losses = _losses(vocabulary, watched_text, nats)
  console.print(
    f"\n{'interrupted; ' * bool(requests)}best {name} loss {losses} "
    f"at update {update}"
    f"{of_held_out}, "
    f"{journal.seconds:.0f} s of training\n"
    f"{folder} holds config.json, metrics.jsonl, loss.png, samples.txt and "
    "checkpoints/; to go on writing:\n"
    f"  python -m experiments.sample --run={shlex.quote(str(folder))} {prompt}",
    soft_wrap=True,
  )
  return Result(folder, update, nats, bool(requests))


def _tokens(vocabulary: Tokenizer, held_out: np.ndarray) -> str:
  """Return how many tokens are known, and how many are held out."""
  if not vocabulary.stand_ins:
    return f"{vocabulary.size} distinct, {len(held_out):,} held out"
  known = vocabulary.size - len(vocabulary.stand_ins)
  unknown = np.isin(held_out, vocabulary.stand_ins).mean()
  return (
    f"{known:,} {vocabulary.unit}s known, {len(held_out):,} held out, "
    f"{unknown:.1%} of them unknown"
  )


def _losses(vocabulary: Tokenizer, text: str, nats: float) -> str:
  """Return the mean nats of a text's tokens, and what that is per character."""
  total = nats * (len(vocabulary.encode(text)) - 1)
  spelt = nats_per_character(vocabulary, text, total)
  losses = f"{nats:.4f} nats per {vocabulary.unit}"
  if vocabulary.stand_ins:
    losses += (
      f", perplexity {perplexity(nats):,.1f}, {spelt:.4f} nats per character "
      "with unknown words spelt"
    )
  return f"{losses} ({spelt / math.log(2):.4f} bits)"


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


def define_flags() -> list[flags.FlagHolder]:
  """Define one flag for each field of TrainConfig, with its default."""
  default = TrainConfig()

  def integer(name, text, low=1):
    value = getattr(default, name)
    return flags.DEFINE_integer(name, value, text, low, LARGEST)

  def number(name, text, low=0.0):
    value = getattr(default, name)
    flag = flags.DEFINE_float(name, value, text, lower_bound=low)
    return finite(flag)

  def boolean(name, text):
    return flags.DEFINE_boolean(name, getattr(default, name), text)

  def choice(name, values, text):
    return flags.DEFINE_enum(name, getattr(default, name), values, text)

  def string(name, text):
    return flags.DEFINE_string(name, getattr(default, name), text)

  return [
    string("corpus", "The text to learn: any UTF-8 file."),
    number("split", "Share of the corpus held out, at its end, in (0, 1)."),
    number(
      "development",
      "Share of the training split, at its end, that is not trained on but "
      "watched, so that the held-out split chooses nothing; 0 to watch that.",
    ),
    choice(
      "tokens",
      get_args(Tokens),
      "What is read and written one by one; marks and line breaks are words.",
    ),
    integer("min_count", "Words that training has less often are unknown."),
    string("run", "Folder of the run; empty for a new one under runs/."),
    boolean("overwrite", "Replace the run that --run holds."),
    integer("seed", "Seed of the initial weights and of the samples.", 0),
    choice("cell", list(CELLS), "The recurrent cell."),
    integer("embedding_size", "Length of a token's vector."),
    integer("hidden_size", "Hidden units of each layer."),
    integer("num_layers", "Layers of cells."),
    boolean(
      "tied",
      "Read out with the embedding; --embedding_size must be that of the top "
      "layer's outputs.",
    ),
    number(
      "init_std",
      "Deviation of Gaussian initial weights, with every bias 0; 0 for the "
      "cell's own initial weights.",
    ),
    number(
      "readout_std",
      "Deviation of the readout's initial weights; 0 for 1/√hidden_size.",
    ),
    choice(
      "compute_dtype",
      list(COMPUTE_DTYPES),
      "What products read their operands in; sums, weights, states and "
      "gradients stay float32.",
    ),
    number("token_dropout", "Rate at which tokens lose their vector."),
    number("layer_dropout", "Rate of dropout between layers, locked in time."),
    number("output_dropout", "The same of what is read out of the top layer."),
    number("weight_drop", "Rate of DropConnect on recurrent weights."),
    number("zoneout_h", "How often a unit keeps its h for a step."),
    number("zoneout_c", "How often a unit keeps its c for a step."),
    number("activation", "Factor of the mean square of what is read out (AR)."),
    number(
      "slowness", "Factor of the mean square of its change in a step (TAR)."
    ),
    integer("num_streams", "Streams of text read in parallel (batch size)."),
    integer("num_steps", "Tokens of a stream in one update."),
    integer("num_epochs", "Passes over the training split."),
    boolean("random_offsets", "Begin each epoch somewhere else in the text."),
    number("short_blocks", "How often a block has half of --num_steps."),
    integer(
      "late_streams",
      "Streams of the last third of the epochs, for gradients with less noise; "
      "0 for --num_streams.",
      0,
    ),
    choice("optimizer", get_args(optimizer.Rule), "How weights are updated."),
    number("learning_rate", "Peak of the learning-rate schedule."),
    choice(
      "schedule", get_args(optimizer.Schedule), "What follows the warm-up."
    ),
    integer("warmup", "Updates of linear warm-up.", 0),
    number("weight_decay", "Weight decay of adamw, on matrices only."),
    number("clip_norm", "Largest global norm of a gradient; 0 for any."),
    number("clip_value", "Largest element of a gradient; 0 for any."),
    number(
      "average",
      "Decay of the weights' exponential average, which is then what is "
      "watched, sampled and kept; 0 for the weights themselves.",
    ),
    integer(
      "average_after",
      "Average the weights (NT-ASGD) from the first look that is worse than "
      "the best of those before the last so many; 0 for never.",
      0,
    ),
    integer("eval_every", "Updates between two looks: held-out loss, sample."),
    integer("sample_length", "Tokens of a sample while training."),
    number("temperature", "Temperature of the samples; 0 is greedy."),
  ]


def main() -> int:
  """Read the flags and run."""
  config = TrainConfig(**{flag.name: flag.value for flag in FLAGS})
  result = run(config, plain_console())
  return INTERRUPTED if result.interrupted else 0


if __name__ == "__main__":
  FLAGS = define_flags()
  launch(main)
