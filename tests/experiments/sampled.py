"""The samples of a run, as `experiments.sample` draws them."""

from experiments import sample

# Those of the program's flags, but for a length of 30 in place of 400.
DEFAULTS = {
  "prompt": None,
  "length": 30,
  "temperature": 0.8,
  "top_k": 0,
  "top_p": 1.0,
  "min_p": 0.0,
  "num_samples": 1,
  "seed": 0,
  "best_of": 1,
  "beam": 0,
  "interactive": False,
}


def sample_texts(directory, **options):
  """Have a run write samples, and return their texts.

  The options are those of `sample.run` that differ from DEFAULTS.
  """
  samples = sample.run(str(directory), **DEFAULTS | options)
  return ["".join(parts) for parts in samples]
