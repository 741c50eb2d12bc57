"""What tests of runs that are stopped, killed and resumed have in common."""

import json
import signal

from experiments import train
from lstm_jax.training import list_checkpoints

CLOCK = "seconds", "characters_per_second", "words_per_second"


def essence(folder):
  """Return all that a finished run has left but what its clock says.

  The arrays of its last checkpoint are told by the SHA-256 of each.
  """
  step = list_checkpoints(folder / "checkpoints")[-1]
  last = folder / "checkpoints" / str(step)
  seal = json.loads((last / "seal" / "metadata").read_text())
  del seal["description"]  # has seconds in it
  text = (folder / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  result = json.loads((folder / "result.json").read_text())
  return {
    "step": step,
    "arrays": seal,
    "rows": [without_clock(row) for row in rows],
    "samples": (folder / "samples.txt").read_text(),
    "result": without_clock(result),
  }


def without_clock(row):
  return {name: value for name, value in row.items() if name not in CLOCK}


def signal_at(monkeypatch, step, signum=signal.SIGTERM):
  """Have the process send itself a signal in the update that makes `step`."""
  make_update = train.make_update

  def make(*args, **options):
    update = make_update(*args, **options)

    def signalling(state, *block):
      state, metrics = update(state, *block)
      if int(state.step) == step:
        signal.raise_signal(signum)
      return state, metrics

    return signalling

  monkeypatch.setattr(train, "make_update", make)
