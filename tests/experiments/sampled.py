"""The samples of a run, as `experiments.sample` draws them."""

from experiments import sample

DEFAULTS = {"min_p": 0.0, "best_of": 1, "beam": 0, "interactive": False}


def write(directory, **options):
  """Return the texts of some samples."""
  samples = sample.run(str(directory), **DEFAULTS | options)
  return ["".join(parts) for parts in samples]
