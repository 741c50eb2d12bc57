r"""Sample from a trained model: let it continue a prompt.

  python -m experiments.sample --run=DIRECTORY --prompt="Shall I" \
    --length=400 --temperature=0.8 --num_samples=3

reads the best checkpoint of the run and prints the samples, each after the
prompt, if one is given. A word model never draws <unk>, the unknown word.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.cli import launch
from experiments.trainer.data import default_prompt
from experiments.trainer.flags import LARGEST, finite
from experiments.trainer.format import escape_controls
from experiments.trainer.trained import load
from lstm_jax.language import sample

IGNORED_BY_GREEDY = "top_k", "top_p", "seed"


def _define_flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string("run", "", "Run directory."),
    flags.DEFINE_string(
      "prompt",
      None,
      "The text to continue; if not given, a line break (or the first token of "
      "the vocabulary), which is not printed.",
    ),
    flags.DEFINE_integer(
      "length", 400, "Tokens to draw: characters, or words.", lower_bound=1
    ),
    finite(
      flags.DEFINE_float(
        "temperature",
        0.8,
        "Below 1 favours likely tokens, above 1 unlikely ones; 0 is greedy.",
        lower_bound=0.0,
      )
    ),
    flags.DEFINE_integer(
      "top_k", 0, "Draw among the k likeliest tokens; 0 for all.", lower_bound=0
    ),
    finite(
      flags.DEFINE_float(
        "top_p",
        1.0,
        "Draw among the likeliest tokens that make up this probability, "
        "in (0, 1]; 1 for all.",
        lower_bound=0.0,
        upper_bound=1.0,
      )
    ),
    flags.DEFINE_integer("num_samples", 1, "How many samples.", lower_bound=1),
    flags.DEFINE_integer(
      "seed", 0, "The same seed gives the same text.", 0, LARGEST
    ),
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
  """Return samples of the run's best model, each after the prompt if given.

  Raises:
    ValueError: the run has no usable checkpoint, the prompt is empty or has
      unknown characters or words, or a number is out of its range.
  """
  trained = load(Path(run))
  tokenizer = trained.tokenizer
  if prompt is None:
    prompt_tokens = default_prompt(tokenizer)
  else:
    prompt_tokens = tokenizer.encode_known(prompt)
  if not len(prompt_tokens):
    raise ValueError(f"the prompt must have at least one {tokenizer.unit}")
  samples = sample(
    trained.model,
    trained.params,
    jax.random.key(seed),
    prompt_tokens,
    length,
    num_samples=num_samples,
    temperature=temperature,
    top_k=top_k or None,
    top_p=top_p if top_p < 1 else None,
    suppress_tokens=tokenizer.unknown_tokens,
  )
  if prompt is None:
    return [tokenizer.decode(tokens) for tokens in samples]
  return [
    tokenizer.decode(np.concatenate([prompt_tokens, tokens]))
    for tokens in samples
  ]


def show(texts: list[str]) -> None:
  """Print samples; in a terminal, with control characters escaped."""
  for number, text in enumerate(texts, start=1):
    if len(texts) > 1:
      print(f"=== sample {number} ===")
    shown = escape_controls(text) if sys.stdout.isatty() else text
    sys.stdout.write(f"{shown}\n")


def main() -> None:
  """Read the flags, sample and print."""
  options = {flag.name: flag.value for flag in FLAGS}
  for flag in FLAGS if not options["temperature"] else ():
    if flag.name in IGNORED_BY_GREEDY and flag.value != flag.default:
      print(
        f"warning: --{flag.name}={flag.value} has no effect: "
        "--temperature=0 is greedy",
        file=sys.stderr,
      )
  show(run(**options))


if __name__ == "__main__":
  FLAGS = _define_flags()
  launch(main, required=("run",))
