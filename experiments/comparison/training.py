"""Training of a compared cell: all of its seeds together, as an ensemble."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.text_stats import text_stats
from experiments.comparison.config import CompareConfig
from experiments.comparison.corpus import Corpus
from experiments.comparison.models import CellModel
from experiments.trainer.data import default_prompt
from experiments.trainer.distributed import members_mesh
from experiments.trainer.loop import Diverged, Observer, fit
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  sample,
  stateful_loss,
)
from lstm_jax.training import (
  Metrics,
  TrainState,
  TrainStep,
  each_member,
  init_ensemble,
  make_ensemble_train_step,
  make_optimizer,
)

NUM_SAMPLES, SAMPLE_LENGTH = 8, 500  # of each seed; characters of each
TEMPERATURE = 1.0
EXCERPT = 200  # characters of the one sample that is kept


class TrainedCell(NamedTuple):
  """The result of training the seeds of a cell."""

  evaluations: list[dict[str, Any]]  # step, val_loss of each seed
  samples: list[dict[str, Any]]  # step, text statistics of each seed, a text
  initial_params: list[LanguageParams]  # of each seed
  final_params: list[LanguageParams]  # of each seed


def make_ensemble(
  model: LanguageModel,
  config: CompareConfig,
  num_steps: int,
  keys: jax.Array,
  learning_rates: list[float],
) -> tuple[TrainState, TrainStep]:
  """Return the initial state and the training step of an ensemble.

  Each of S members has its own key [S], which draws its weights, and its own
  peak of the learning rate, in a schedule over `num_steps`.
  """
  mesh = members_mesh(config.job.devices, len(keys))
  optimizer = make_optimizer(config.optimizer, num_steps)
  params = jax.vmap(model.init)(keys)
  batch_size = config.batching.batch_size
  state = init_ensemble(model, optimizer, params, batch_size)
  rates = jnp.asarray(learning_rates, jnp.float32)
  step_all = make_ensemble_train_step(model, optimizer, mesh=mesh)

  def train_step(state, tokens, targets, noise_keys=None):
    return step_all(state, tokens, targets, noise_keys, rates)

  return state, train_step


def evaluation_steps(num_steps: int) -> list[int]:
  """Return the training steps to evaluate after: 0, 10, 20, 50 … the last."""
  series = (m * 10**k for k in range(1, 9) for m in (1, 2, 5))
  return [0, *(step for step in series if step < num_steps), num_steps]


def sample_steps(num_steps: int) -> list[int]:
  """Return the training steps to sample after: 0, 100, 1000 … the last."""
  series = (10**k for k in range(2, 9))
  return [0, *(step for step in series if step < num_steps), num_steps]


def train_cell(
  cell: CellModel,
  corpus: Corpus,
  config: CompareConfig,
  learning_rate: float,
  num_steps: int,
  keys: jax.Array,
  on_step: Callable[[int, float, float], None] | None = None,
) -> TrainedCell:
  """Train every seed of a cell, with evaluations and samples on the way.

  Args:
    cell: the model to train.
    corpus: the text.
    config: batch size, weight decay and devices.
    learning_rate: the peak of the schedule.
    num_steps: training steps, over which the schedule stretches.
    keys: each seed's key, [S]. All samples of a seed are drawn by the same key,
      so that they can be compared.
    on_step: called after each training step with the step, the mean training
      loss over the seeds, and the tokens per second of all seeds together.

  Raises:
    Diverged: a loss is NaN or infinite.
  """
  rates = [learning_rate] * len(keys)
  state, train_step = make_ensemble(cell.model, config, num_steps, keys, rates)
  initial_params = each_member(state.params)
  recorder = _Recorder(cell, corpus, sample_keys(keys), num_steps, on_step)
  recorder.evaluate(0, state)
  state, _ = fit(
    train_step,
    state,
    repeat(corpus.batches),  # the same batches in every epoch
    num_steps,
    recorder,
    evaluate_at=recorder.is_due,
  )
  return TrainedCell(
    evaluations=recorder.evaluations,
    samples=recorder.samples,
    initial_params=initial_params,
    final_params=each_member(state.params),
  )


def sample_keys(keys: jax.Array) -> jax.Array:
  """Return the key by which each seed's samples are drawn, [S].

  The first four children of a seed's key draw its weights, in the `init` of a
  language model. The k-th child does not depend on how many there are.
  """
  return jax.vmap(lambda key: jax.random.split(key, 5)[4])(keys)


@dataclass
class _Recorder(Observer):
  """Records the evaluations and samples of a cell while it is trained."""

  cell: CellModel
  corpus: Corpus
  keys: jax.Array
  num_steps: int
  on_step: Callable[[int, float, float], None] | None
  evaluations: list[dict[str, Any]] = field(default_factory=list)
  samples: list[dict[str, Any]] = field(default_factory=list)
  start: float = 0.0  # when the current step began; `after_step` times it

  def is_due(self, step: int) -> bool:
    """Return whether to evaluate or sample after a step."""
    steps = *evaluation_steps(self.num_steps), *sample_steps(self.num_steps)
    return step in steps

  def after_step(self, step: int, metrics: Metrics) -> None:
    """Check the training loss and report progress."""
    losses = np.asarray(metrics.loss, float)  # waits for the step
    _check_finite(self.cell, "training", losses, step)
    if self.on_step:
      num_tokens = int(np.sum(metrics.num_tokens))  # of all seeds
      seconds = time.monotonic() - self.start
      self.on_step(step, float(losses.mean()), num_tokens / seconds)
    self.start = time.monotonic()

  def evaluate(self, step: int, state: TrainState) -> TrainState:
    """Compute the validation loss, and sample, if they are due."""
    model, corpus = self.cell.model, self.corpus
    seeds = each_member(state.params)
    if step in evaluation_steps(self.num_steps):
      losses = [stateful_loss(model, params, corpus.val) for params in seeds]
      _check_finite(self.cell, "validation", losses, step)
      self.evaluations.append({"step": step, "val_loss": losses})
    if step in sample_steps(self.num_steps):
      statistics = _sample(model, seeds, corpus, self.keys)
      self.samples.append({"step": step} | statistics)
    self.start = time.monotonic()
    return state


def _check_finite(cell: CellModel, name: str, losses: Any, step: int) -> None:
  if not np.isfinite(losses).all():
    raise Diverged(f"{cell.name}: the {name} loss is not finite at step {step}")


def _sample(
  model: LanguageModel,
  seeds: list[LanguageParams],
  corpus: Corpus,
  keys: jax.Array,
) -> dict[str, Any]:
  """Return text statistics of each seed's samples, and the start of one."""
  tokenizer = corpus.tokenizer
  prompt = default_prompt(tokenizer)
  statistics, excerpt = [], ""
  for params, key in zip(seeds, keys, strict=True):
    samples = sample(
      model,
      params,
      key,
      prompt,
      SAMPLE_LENGTH,
      num_samples=NUM_SAMPLES,
      temperature=TEMPERATURE,
    )
    texts = [tokenizer.decode(tokens) for tokens in samples]
    excerpt = excerpt or texts[0][:EXCERPT]
    statistics.append(text_stats(texts, *corpus.known_words)._asdict())
  by_name = {
    name: [seed[name] for seed in statistics] for name in statistics[0]
  }
  return by_name | {"text": excerpt}
