"""What tests of runs that are stopped, killed and resumed have in common."""

import json
import signal

import jax
import jax.numpy as jnp

from experiments.trainer import setup
from lstm_jax.training import list_checkpoints

CLOCK = (
  "seconds",
  "characters_per_second",
  "words_per_second",
  "resident_mb",
  "live_mb",
  "compilations",
)


def essence(directory):
  """Return all that a finished run has left but what the process was like."""
  step, arrays = last_arrays(directory)
  text = (directory / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  result = json.loads((directory / "result.json").read_text())
  return {
    "step": step,
    "arrays": arrays,
    "rows": [without_clock(row) for row in rows],
    "samples": (directory / "samples.txt").read_text(),
    "result": without_clock(result),
  }


def last_arrays(directory):
  """Return the last checkpoint's step and the SHA-256 of each array."""
  step = list_checkpoints(directory / "checkpoints")[-1]
  last = directory / "checkpoints" / str(step)
  seal = json.loads((last / "seal" / "metadata").read_text())
  del seal["description"]  # has seconds in it
  return step, seal


def without_clock(row):
  return {name: value for name, value in row.items() if name not in CLOCK}


def signal_at(
  monkeypatch, step, signum=signal.SIGTERM, maker=(setup, "make_train_step")
):
  """Have the process send itself a signal in the update that makes `step`."""
  make_train_step = getattr(*maker)

  def make(*args, **options):
    update = make_train_step(*args, **options)

    def signalling(state, *block):
      state, metrics = update(state, *block)
      if int(state.step) == step:
        signal.raise_signal(signum)
      return state, metrics

    return signalling

  monkeypatch.setattr(*maker, make)


def poison(monkeypatch, steps):
  """Have the updates that make these steps come to a gradient of NaNs."""
  make_train_step = setup.make_train_step

  def make(*args, **options):
    update = make_train_step(*args, **options)

    def poisoned(state, *block):
      if int(state.step) + 1 not in steps:
        return update(state, *block)
      carry = jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.carry)
      after, metrics = update(state._replace(carry=carry), *block)
      # As if it had been the gradient alone: the update keeps its state.
      assert all(jnp.isnan(c).all() for c in jax.tree.leaves(after.carry))
      good = jax.tree.map(jnp.zeros_like, carry)
      return after._replace(carry=good), metrics

    return poisoned

  monkeypatch.setattr(setup, "make_train_step", make)
