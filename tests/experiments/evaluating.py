"""The evaluation of a run, as `experiments.evaluate` makes it."""

from experiments import evaluate


def evaluated(directory, console):
  """Evaluate a run with the protocol "cold", and return the record."""
  options = evaluate.EvaluateConfig((str(directory),), protocol=("cold",))
  return evaluate.run(options, console)
