"""The evaluation of a run, as `experiments.evaluate` makes it."""

from experiments import evaluate


def evaluated(directory, console):
  """Return the record of a run in cold windows."""
  options = evaluate.EvaluateConfig((str(directory),), protocol=("cold",))
  return evaluate.run(options, console)
