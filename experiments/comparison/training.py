"""Training of the compared cells: learning rate, budget, losses and samples.

All seeds of a cell train together, as an ensemble.

Learning rate: one rate for all cells would favour the cell that it was chosen
for. Each cell tries every rate for a number of training steps on the training
split without its end, and takes the rate with the lowest loss on that end. If
the best rate is the largest or the smallest, a better one may lie beyond it. So
twice or half of it is tried too, until the best rate is neither the largest nor
the smallest, or MOST_FURTHER rates were added. The validation split plays no
part in this choice.

Equal time: a training step of every cell is timed. Each cell gets the number of
training steps that takes as long as all of the LSTM's.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.analysis.text_stats import text_stats
from experiments.benchmarks.timing import measure
from experiments.comparison.cells import CellModel, CompareConfig, Corpus
from experiments.comparison.results import EQUAL_STEPS, EQUAL_TIME
from experiments.trainer import data
from experiments.trainer.distributed import members_mesh
from experiments.trainer.format import counted, format_milliseconds
from experiments.trainer.loop import Diverged, Observer, fit
from lstm_jax.language import (
  Batches,
  LanguageModel,
  LanguageParams,
  make_batches,
  sample,
  split,
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
MOST_FURTHER = 8  # rates beyond those given
TRIAL_FRACTION = 0.1  # of the training split: its end, which judges the rates


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
  prompt = data.default_prompt(tokenizer)
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


class Trial(NamedTuple):
  """The training split, cut in two for the trials of learning rates."""

  batches: Batches  # to train on
  end: np.ndarray  # tokens whose loss judges the rates, int32 [N]


def make_trial(train_tokens: np.ndarray, config: CompareConfig) -> Trial:
  """Cut the training split in two.

  Raises:
    ValueError: without its end, it is shorter than one batch.
  """
  rest, end = split(train_tokens, TRIAL_FRACTION)
  batching = config.batching
  with data.naming_flags(config.data, batching):
    try:
      batches = make_batches(rest, batching.batch_size, batching.seq_len)
    except ValueError as error:
      raise ValueError(f"{error} to try learning rates on") from None
  return Trial(batches, end)


def try_learning_rates(
  cell: CellModel,
  trial: Trial,
  config: CompareConfig,
  key: jax.Array,
  rates: Sequence[float],
) -> dict[float, float]:
  """Return the loss of each learning rate on the end of the training split.

  All rates train together, from the same initial weights. Where training
  diverges the loss is infinite.

  Raises:
    Diverged: training diverges at every rate.
  """
  model, num_steps = cell.model, config.trial_steps
  keys = jnp.stack([key] * len(rates))
  state, train_step = make_ensemble(model, config, num_steps, keys, [*rates])
  state, _ = fit(
    train_step,
    state,
    repeat(trial.batches),
    num_steps,
    Observer(),
    evaluate_at=lambda step: False,
  )
  losses = {
    rate: stateful_loss(model, params, trial.end)
    for rate, params in zip(rates, each_member(state.params), strict=True)
  }
  if not any(map(math.isfinite, losses.values())):
    raise Diverged(f"{cell.name} diverges at each learning rate of {[*rates]}")
  return {r: x if math.isfinite(x) else math.inf for r, x in losses.items()}


def widen(
  rates: Sequence[float],
  try_rates: Callable[[Sequence[float]], dict[float, float]],
) -> dict[float, float]:
  """Return the finite losses of rates, and of further ones beyond their ends.

  Args:
    rates: several learning rates.
    try_rates: rates -> the loss of each, infinite where training diverges; it
      raises Diverged if training diverges at all of them.

  Raises:
    Diverged: training diverges at each of `rates`.
  """
  losses = try_rates(rates)
  for _ in range(MOST_FURTHER):
    best = min(losses, key=losses.__getitem__)
    largest, smallest = max(losses.keys()), min(losses.keys())
    if best == largest:
      further = 2 * best
    elif best == smallest:
      further = best / 2
    else:
      break
    try:
      losses |= try_rates([further])
    except Diverged:
      losses[further] = math.inf
  return {r: losses[r] for r in sorted(losses) if math.isfinite(losses[r])}


def seconds_per_step(
  models: dict[str, CellModel],
  batches: Batches,
  config: CompareConfig,
  keys: jax.Array,
) -> dict[str, float]:
  """Return each cell's median seconds of a step that trains all seeds."""
  batch, rounds = batches.batch(0), config.timing_rounds

  def make_run(cell: CellModel) -> Callable[[], Any]:
    # The same program as in training. Its time does not depend on the rate.
    state, train_step = make_ensemble(
      cell.model, config, config.num_steps, keys, [1e-3] * len(keys)
    )

    def run():
      nonlocal state
      state, metrics = jax.block_until_ready(train_step(state, *batch))
      return metrics

    return run

  runs = {name: make_run(cell) for name, cell in models.items()}
  seconds = measure(runs, rounds)
  return {name: float(np.median(times)) for name, times in seconds.items()}


def describe_cells(
  models: dict[str, CellModel],
  corpus: Corpus,
  config: CompareConfig,
  keys: jax.Array,
  trial_key: jax.Array,
  console: Console,
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield (cell, its size, speed and learning rate), and print each.

  The learning rate is None if training diverges at every one that is tried.

  Args:
    models: the model of each cell.
    corpus: the text.
    config: the learning rates to try, and how to time a training step.
    keys: one key for each of S seeds, [S].
    trial_key: draws the initial weights for the trials of learning rates.
    console: where to print.

  Raises:
    ValueError: the corpus is too short to try learning rates.
  """
  several = len(config.learning_rate) > 1
  trial = make_trial(corpus.train, config) if several else None
  seconds = seconds_per_step(models, corpus.batches, config, keys)
  width = max(map(len, models))
  for name, cell in models.items():
    losses: dict[float, float] = {}  # of the rates that did not diverge
    learning_rate: float | None = config.learning_rate[0]
    chosen = f"learning rate {learning_rate} (the only one given)"
    if trial:
      try_rates = partial(try_learning_rates, cell, trial, config, trial_key)
      try:
        losses = widen(config.learning_rate, try_rates)
      except Diverged:
        learning_rate, chosen = None, "diverged at each learning rate given"
      else:
        learning_rate = min(losses, key=losses.__getitem__)
        trials = [f"loss {loss:.3f} at {r}" for r, loss in losses.items()]
        chosen = f"learning rate {learning_rate} ({', '.join(trials)})"
    console.print(
      f"{name:{width}}  H {cell.hidden_size}, "
      f"{cell.num_parameters:,} parameters, "
      f"{format_milliseconds(1e3 * seconds[name])} ms per training step of "
      f"{counted(len(keys), 'seed')}, {chosen}",
      soft_wrap=True,
    )
    steps = round(config.num_steps * seconds["lstm"] / seconds[name])
    yield (
      name,
      {
        "hidden_size": cell.hidden_size,
        "num_parameters": cell.num_parameters,
        "seconds_per_step": seconds[name],
        "steps_in_equal_time": max(1, steps),
        "learning_rate": learning_rate,
        "learning_rate_trials": [
          {"learning_rate": rate, "loss": loss} for rate, loss in losses.items()
        ],
      },
    )


def plan_runs(
  cells: dict[str, dict[str, Any]], config: CompareConfig
) -> list[tuple[str, str, int]]:
  """Return (budget, cell, training steps) of each training run.

  The LSTM has one run for both budgets: equal time is the time of its run.
  """
  runs = [(EQUAL_STEPS, name, config.num_steps) for name in cells]
  if config.equal_time:
    runs += [
      (EQUAL_TIME, name, cells[name]["steps_in_equal_time"])
      for name in cells
      if name != "lstm"
    ]
  return runs
