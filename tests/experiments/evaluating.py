"""The evaluation of a run, as `experiments.evaluate` makes it."""

from experiments import evaluate


def evaluated(directory, console):
  """Evaluate a run by the protocol "cold", and return the record.

  It reads windows of the text, each from the zero state.
  """
  options = evaluate.EvaluateConfig((str(directory),), protocol=("cold",))
  return evaluate.run(options, console)
