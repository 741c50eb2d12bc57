"""Helpers for tests of runs that are interrupted and resumed."""

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import train
from experiments.trainer import setup
from lstm_jax.training import list_checkpoints

# Entries of metrics.jsonl and result.json that differ between equal runs.
PROCESS_METRICS = (
  "seconds",
  "tokens_per_second",
  "resident_mb",
  "live_mb",
  "compilations",
)


def read_rows(directory):
  """Return the rows of a run's metrics.jsonl."""
  text = (Path(directory) / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def outcome(directory):
  """Return what a finished run has written, without PROCESS_METRICS."""
  step, arrays = last_checksums(directory)
  result = json.loads((directory / "result.json").read_text())
  return {
    "step": step,
    "arrays": arrays,
    "rows": [without_process_metrics(row) for row in read_rows(directory)],
    "samples": (directory / "samples.txt").read_text(),
    "result": without_process_metrics(result),
  }


def last_checksums(directory):
  """Return the last checkpoint's step, and the SHA-256 of each named array."""
  step = list_checkpoints(directory / "checkpoints")[-1]
  last = directory / "checkpoints" / str(step)
  checksums = json.loads((last / "checksums" / "metadata").read_text())
  del checksums["description"]  # contains elapsed seconds
  return step, checksums


def without_process_metrics(row):
  return {
    name: value for name, value in row.items() if name not in PROCESS_METRICS
  }


def signal_at(
  monkeypatch, step, signum=signal.SIGTERM, maker=(setup, "make_train_step")
):
  """Have the process send itself a signal in the training step `step`.

  `maker` is the module and the name of the function that makes the train step.
  """
  make_train_step = getattr(*maker)

  def make(*arguments, **options):
    train_step = make_train_step(*arguments, **options)

    def signalling(state, *batch):
      state, metrics = train_step(state, *batch)
      if int(state.step) == step:
        signal.raise_signal(signum)
      return state, metrics

    return signalling

  monkeypatch.setattr(*maker, make)


def inject_nans(monkeypatch, steps):
  """Make the gradients of some training steps NaN, by a carried state of NaNs.

  `steps` are the numbers of these steps, from 1.
  """
  make_train_step = setup.make_train_step

  def make(*arguments, **options):
    train_step = make_train_step(*arguments, **options)

    def train_step_with_nans(state, *batch):
      if int(state.step) + 1 not in steps:
        return train_step(state, *batch)
      carry = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
      after, metrics = train_step(state._replace(carry=carry), *batch)
      # A skipped step keeps the carry, here NaN: the next step gets zeros.
      assert all(jnp.isnan(c).all() for c in jax.tree.leaves(after.carry))
      zeros = jax.tree.map(jnp.zeros_like, carry)
      return after._replace(carry=zeros), metrics

    return train_step_with_nans

  monkeypatch.setattr(setup, "make_train_step", make)


def stop_at(step, config, console, signum=signal.SIGTERM):
  """Train until a signal stops the run after `step`; return its `Result`."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, step, signum)
    return train.run(config, console)
