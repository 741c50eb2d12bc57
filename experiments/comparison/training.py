"""Train one cell's seeds on the text, and look at them as they learn."""

import time
from itertools import islice, repeat
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.analysis.text_stats import shuffled, words, writing
from experiments.cli import Diverged
from experiments.comparison.config import CompareConfig
from experiments.comparison.models import Contender
from experiments.progress import TrainingBar
from experiments.trainer.run_dir import default_prompt
from lstm_jax.language import (
  Batches,
  CharTokenizer,
  LanguageParams,
  characters,
  make_batches,
  read_text,
  sample,
  split,
  stateful_loss,
)
from lstm_jax.training import (
  OptimizerConfig,
  TrainState,
  init_ensemble,
  make_ensemble_train_step,
  make_optimizer,
  member,
  train,
)

TEXTS, LENGTH = 8, 500  # that each seed writes at a stage, and their characters
TEMPERATURE = 1.0  # what the model believes, neither sharpened nor blurred
SHOWN = 200  # characters of the one that is kept


class Corpus(NamedTuple):
  """The text that is learnt, and what is known of it."""

  vocabulary: CharTokenizer
  training: np.ndarray
  held_out: np.ndarray
  streams: Batches
  words: tuple[set[str], set[str]]  # of the training and the held-out text
  figures: dict[str, Any]


class Learnt(NamedTuple):
  """What training leaves: figures, and each seed's weights."""

  figures: dict[str, Any]
  untrained: list[LanguageParams]
  trained: list[LanguageParams]


def read_corpus(config: CompareConfig) -> Corpus:
  """Read the corpus, and measure what the cells are to be measured by.

  Raises:
    ValueError: the file cannot be read or is too short.
  """
  text = read_text(config.corpus)
  vocabulary = characters(text)
  training, held_out = split(vocabulary.encode(text), config.val_fraction)
  needed = max(config.context, config.flow_steps) + 1
  if len(held_out) < needed:
    raise ValueError(
      f"context and flow_steps need a held-out text of at least {needed:,} "
      f"characters, got {len(held_out):,} of {config.corpus}"
    )
  streams = make_batches(training, config.batch_size, config.seq_len)
  before, after = vocabulary.decode(training), vocabulary.decode(held_out)
  known = set(words(before)), set(words(after))
  figures = {
    "characters": len(text),
    "distinct": vocabulary.size,
    "held_out": len(held_out),
    "updates_per_epoch": streams.num_batches,
    "writing": {
      "training text": writing([before], *known)._asdict(),
      "held-out text": writing([after], *known)._asdict(),
      "its lines shuffled": writing([shuffled(after)], *known)._asdict(),
    },
  }
  return Corpus(vocabulary, training, held_out, streams, known, figures)


def looks(num_steps: int) -> list[int]:
  """Return after how many updates to look: 0, 10, 20, 50 … and the last."""
  series = (m * 10**k for k in range(1, 9) for m in (1, 2, 5))
  return [0, *(step for step in series if step < num_steps), num_steps]


def stages(num_steps: int) -> list[int]:
  """Return after how many updates to let it write: 0, 100, 1000 … the last."""
  series = (10**k for k in range(2, 9))
  return [0, *(step for step in series if step < num_steps), num_steps]


def learn(
  contender: Contender,
  corpus: Corpus,
  config: CompareConfig,
  learning_rate: float,
  num_steps: int,
  keys: jax.Array,
  console: Console,
) -> Learnt:
  """Train every seed for num_steps, whose schedule is stretched to them.

  Args:
    contender: the cell.
    corpus: the text.
    config: of the comparison.
    learning_rate: the peak.
    num_steps: of this cell.
    keys: the seeds', [S], of initial weights and of what is written.
    console: where progress is shown.

  Raises:
    Diverged: a loss is NaN or infinite.
  """
  model = contender.model
  rule = make_optimizer(
    OptimizerConfig(
      learning_rate=learning_rate, weight_decay=config.weight_decay
    ),
    num_steps,
  )
  params = jax.vmap(model.init)(keys)
  state = init_ensemble(model, rule, params, config.batch_size)
  untrained = _seeds(state, keys)
  held_out: list[dict[str, Any]] = []
  written: list[dict[str, Any]] = []
  looked, wrote = looks(num_steps), stages(num_steps)

  def look(step: int, seeds: list[LanguageParams]) -> None:
    if step in looked:
      nats = [stateful_loss(model, seed, corpus.held_out) for seed in seeds]
      _check(contender.name, "held-out", nats, step)
      held_out.append({"step": step, "nats": nats})
    if step in wrote:
      figures = _written(model, seeds, corpus, keys)
      written.append({"step": step} | figures)

  look(0, untrained)
  update = make_ensemble_train_step(model, rule)
  updates = islice(train(update, state, repeat(corpus.streams)), num_steps)
  bar = TrainingBar(console, num_steps, corpus.vocabulary.unit)
  tokens = len(keys) * config.batch_size * config.seq_len  # an update
  began = time.monotonic()
  with bar:
    for step, (state, metrics) in enumerate(updates, start=1):
      losses = np.asarray(metrics.loss, float)
      _check(contender.name, "training", losses, step)
      rate = tokens / (time.monotonic() - began)
      bar.update(step, float(losses.mean()), rate)
      if step in looked or step in wrote:
        look(step, _seeds(state, keys))
      began = time.monotonic()
  figures = {"held_out": held_out, "writing": written}
  return Learnt(figures, untrained, _seeds(state, keys))


def _seeds(state: TrainState, keys: jax.Array) -> list[LanguageParams]:
  return [member(state, i).params for i in range(len(keys))]


def _check(name: str, kind: str, losses: Any, step: int) -> None:
  if not np.isfinite(losses).all():
    raise Diverged(f"{name}: the {kind} loss is not finite at update {step}")


def _written(
  model: Any, seeds: list[LanguageParams], corpus: Corpus, keys: jax.Array
) -> dict[str, Any]:
  """Return each seed's figures of what it writes, and some of the first's."""
  vocabulary = corpus.vocabulary
  prompt = default_prompt(vocabulary)
  figures, shown = [], ""
  for params, key in zip(seeds, keys, strict=True):
    tokens = sample(
      model,
      params,
      key,
      prompt,
      LENGTH,
      num_samples=TEXTS,
      temperature=TEMPERATURE,
    )
    texts = [vocabulary.decode(row) for row in tokens]
    shown = shown or texts[0][:SHOWN]
    figures.append(writing(texts, *corpus.words)._asdict())
  return {name: [each[name] for each in figures] for name in figures[0]} | {
    "text": shown
  }
