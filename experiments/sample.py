r"""Let a trained model write on from a prompt.

  python -m experiments.sample --run=FOLDER --prompt="Shall I" --length=400 \
    --temperature=0.8 --num_samples=3

reads the best checkpoint of the run and prints each sample after its prompt. A
model over words never writes an unknown one: <unk> is not drawn.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.cli import LARGEST, finite, launch
from experiments.trainer import run_dir
from lstm_jax.language import sample


def _flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string("run", None, "Folder of the run.", required=True),
    flags.DEFINE_string(
      "prompt", None, "The text to continue; a line end if not given."
    ),
    flags.DEFINE_integer(
      "length", 400, "Tokens to write: characters, or words.", lower_bound=1
    ),
    finite(
      flags.DEFINE_float(
        "temperature",
        0.8,
        "Below 1 keeps to what is likely, above 1 strays; 0 is greedy.",
        lower_bound=0.0,
      )
    ),
    flags.DEFINE_integer(
      "top_k", 0, "Draw among the k likeliest only; 0 for all.", lower_bound=0
    ),
    finite(
      flags.DEFINE_float(
        "top_p",
        1.0,
        "Draw among the likeliest that make up this probability.",
        lower_bound=0.0,
        upper_bound=1.0,
      )
    ),
    flags.DEFINE_integer("num_samples", 1, "How many samples.", lower_bound=1),
    flags.DEFINE_integer("seed", 0, "Equal seed, equal text.", 0, LARGEST),
  ]


def run(
  run: str,
  prompt: str | None,
  length: int,
  temperature: float,
  top_k: int,
  top_p: float,
  num_samples: int,
  seed: int,
) -> list[str]:
  """Return what the run's best model writes, each after the prompt if given.

  Raises:
    ValueError: the folder has no usable checkpoint, the prompt is empty or has
      a character or words that the model does not know, or a number is out of
      range.
  """
  trained = run_dir.load(Path(run))
  vocabulary = trained.vocabulary
  if prompt is None:
    opening = run_dir.default_prompt(vocabulary)
  else:
    opening = vocabulary.encode_known(prompt)
  if not len(opening):
    raise ValueError(f"the prompt must have at least one {vocabulary.unit}")
  tokens = sample(
    trained.model,
    trained.params,
    jax.random.key(seed),
    opening,
    length,
    num_samples=num_samples,
    temperature=temperature,
    top_k=top_k or None,
    top_p=top_p if top_p < 1 else None,
    never=vocabulary.unknown_tokens,
  )
  if prompt is None:
    return [vocabulary.decode(row) for row in tokens]
  return [vocabulary.decode(np.concatenate([opening, row])) for row in tokens]


def main() -> None:
  """Read the flags, sample and print."""
  options = {flag.name: flag.value for flag in FLAGS}
  texts = run(**options)
  for number, text in enumerate(texts, start=1):
    if len(texts) > 1:
      print(f"=== sample {number} ===")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
  FLAGS = _flags()
  launch(main)
