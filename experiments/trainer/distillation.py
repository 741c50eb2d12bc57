"""Distillation: training with the predictions of other runs as targets.

With teachers, the target of each prediction is a distribution over the tokens,

  q = (1 − λ) onehot(target) + λ p,

and the loss −Σ q log p_student, where p is the mean of the teachers'
probabilities and λ is --teacher_weight (Hinton et al. 2015, Distilling the
knowledge in a neural network, section 2, at temperature 1). The teachers read
the training text once, before the first training step, without dropout. A
resumed run computes the targets again; it is refused if the checksums of the
teachers' weights are not those in config.json.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.trainer import run_dir
from experiments.trainer.format import format_bytes
from experiments.trainer.setup import TrainSetup
from experiments.trainer.trained import (
  Trained,
  check_fits,
  load_members,
  on_host,
  read_pretrained,
)
from lstm_jax.language import Batches, make_batches
from lstm_jax.language.evaluate import batch_log_probs
from lstm_jax.training import Epoch
from lstm_jax.training.checksum import array_checksums, json_checksum


class SoftBatches(NamedTuple):
  """One epoch of batches whose targets are distributions."""

  positions: Batches  # of a text whose tokens are the indices 0 … N − 1
  tokens: np.ndarray  # the text itself, int32 [N]
  targets: np.ndarray  # float32 [N, V]; row i is for predicting tokens[i]

  @property
  def num_batches(self) -> int:
    """Number of batches in the epoch."""
    return self.positions.num_batches

  def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [T, B], targets [T, B, V]) of one batch."""
    read_at, predicted_at = self.positions.batch(index)
    return self.tokens[read_at], self.targets[predicted_at]


class Sources(NamedTuple):
  """The other runs that a run learns from, their weights on the host."""

  pretrained: Trained | None  # has the initial weights; None for random ones
  teachers: list[Trained]

  def facts(self) -> dict[str, Any]:
    """Return the entries of config.json that identify their weights."""
    facts: dict[str, Any] = {}
    if self.pretrained:
      facts["init_from_step"] = self.pretrained.step
      facts[run_dir.INIT_FROM] = weights_sha256(self.pretrained)
    if self.teachers:
      facts[run_dir.TEACHERS] = [weights_sha256(t) for t in self.teachers]
    return facts


def read_sources(setup: TrainSetup, limit: int) -> Sources:
  """Return the models that --init_from and --teacher name.

  The arguments, and what is raised, are those of `read_teachers`, and of
  `read_pretrained`.
  """
  return Sources(read_pretrained(setup), read_teachers(setup, limit))


def read_teachers(setup: TrainSetup, limit: int) -> list[Trained]:
  """Return the trained models that --teacher names, their weights on the host.

  Args:
    setup: of the run that learns from them.
    limit: bytes of memory that their predictions may take.

  Raises:
    ValueError: a directory holds no trained model, or one of another
      vocabulary, corpus or splits than this run's; a directory is given twice;
      or there is too little memory.
  """
  config = setup.config.distillation
  directories = [Path(name) for name in config.teacher]
  if not directories:
    return []
  try:
    teachers = load_members(directories, config.teacher_checkpoint)
  except ValueError as error:
    raise ValueError(f"--teacher: {error}") from None
  # The others have the vocabulary, text and splits of the first.
  teacher, name = teachers[0], f"--teacher={config.teacher[0]}"
  check_fits(setup, teacher, name)
  if teacher.corpus_sha256 != setup.corpus.sha256:
    raise ValueError(
      f"{name} has another text: it must be trained on "
      f"{setup.config.data.corpus} as it is now, got a model trained on "
      f"{teacher.config.data.corpus} as it was then"
    )
  if (needed := soft_target_bytes(setup)) > limit:
    raise ValueError(
      "out of memory: the teachers' predictions of "
      f"{len(setup.corpus.train.tokens):,} tokens need {format_bytes(needed)}, "
      f"and there are {format_bytes(limit)}"
    )
  return [on_host(teacher) for teacher in teachers]


def weights_sha256(trained: Trained) -> str:
  """Return the SHA-256 of a model's weights."""
  return json_checksum(array_checksums({"params": trained.params}))


def soft_target_bytes(setup: TrainSetup) -> int:
  """Return the bytes of the targets of the whole training text."""
  num_tokens, size = len(setup.corpus.train.tokens), setup.corpus.tokenizer.size
  return num_tokens * size * np.dtype(np.float32).itemsize


def make_epochs(
  setup: TrainSetup, teachers: list[Trained], console: Console
) -> Iterator[Epoch]:
  """Return the epochs of a run; with teachers, the targets are `soft_targets`.

  The teachers read the training text during this call. The console prints their
  names and how long they read.
  """
  if not teachers:
    return setup.epochs()
  config, (_, tokens, gap) = setup.config, setup.corpus.train
  start = time.perf_counter()
  targets = soft_targets(setup, teachers)
  names = ", ".join(
    f"{name} (step {teacher.step})"
    for name, teacher in zip(config.distillation.teacher, teachers, strict=True)
  )
  console.print(
    f"teachers    {names}, weight {config.distillation.teacher_weight:g}: read "
    f"the training text in {time.perf_counter() - start:.0f} s",
    soft_wrap=True,
  )
  positions = np.arange(len(tokens), dtype=np.int32)
  epochs = config.batching.epochs(positions, config.seed, gap)
  return (SoftBatches(epoch, tokens, targets) for epoch in epochs)


def soft_targets(setup: TrainSetup, teachers: list[Trained]) -> np.ndarray:
  """Return the target of every token of the training text, float32 [N, V].

  Each of the B columns of `make_batches` is read from the zero state, so that
  its first tokens have little context. The first token of the text, and that
  after the gap where a development split was cut out, have none: their target
  is the token itself, as a one-hot row.
  """
  config, (_, tokens, gap) = setup.config, setup.corpus.train
  batching, weight = config.batching, config.distillation.teacher_weight
  positions = make_batches(
    np.arange(len(tokens), dtype=np.int32),
    batching.batch_size,
    batching.seq_len,
    gap,
  )
  text = positions._replace(tokens=tokens[positions.tokens])
  readers = [
    batch_log_probs(teacher.model, jax.device_put(teacher.params), text)
    for teacher in teachers
  ]
  targets = np.zeros((len(tokens), setup.corpus.tokenizer.size), np.float32)
  targets[np.arange(len(tokens)), tokens] = 1
  for index, log_probs in enumerate(zip(*readers, strict=True)):
    _, predicted_at = positions.batch(index)
    mixed = weight * sum(map(np.exp, log_probs)) / len(teachers)
    mixed[(*np.indices(predicted_at.shape), tokens[predicted_at])] += 1 - weight
    targets[predicted_at] = mixed
  return targets
