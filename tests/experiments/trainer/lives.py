"""Helpers of the tests of runs that are stopped, killed and resumed."""

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.trainer import setup
from lstm_jax.training import list_checkpoints

# Entries of a row that depend on the process and its machine.
CLOCK = (
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


def essence(directory):
  """Return everything that a finished run has left but for CLOCK."""
  step, arrays = last_arrays(directory)
  result = json.loads((directory / "result.json").read_text())
  return {
    "step": step,
    "arrays": arrays,
    "rows": [without_clock(row) for row in read_rows(directory)],
    "samples": (directory / "samples.txt").read_text(),
    "result": without_clock(result),
  }


def last_arrays(directory):
  """Return the last checkpoint's step and the SHA-256 of each array."""
  step = list_checkpoints(directory / "checkpoints")[-1]
  last = directory / "checkpoints" / str(step)
  checksums = json.loads((last / "checksums" / "metadata").read_text())
  del checksums["description"]  # has seconds in it
  return step, checksums


def without_clock(row):
  return {name: value for name, value in row.items() if name not in CLOCK}


def signal_at(
  monkeypatch, step, signum=signal.SIGTERM, maker=(setup, "make_train_step")
):
  """Have the process send itself a signal in the training step `step`."""
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


def poison(monkeypatch, steps):
  """Have these training steps compute a gradient of NaNs."""
  make_train_step = setup.make_train_step

  def make(*arguments, **options):
    train_step = make_train_step(*arguments, **options)

    def poisoned(state, *batch):
      if int(state.step) + 1 not in steps:
        return train_step(state, *batch)
      carry = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
      after, metrics = train_step(state._replace(carry=carry), *batch)
      # As if it had been the gradient alone: the step keeps its carried state.
      assert all(jnp.isnan(c).all() for c in jax.tree.leaves(after.carry))
      good = jax.tree.map(jnp.zeros_like, carry)
      return after._replace(carry=good), metrics

    return poisoned

  monkeypatch.setattr(setup, "make_train_step", make)
