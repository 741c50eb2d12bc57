r"""Sample from a trained model: let it continue a prompt.

  python -m experiments.sample --run=DIRECTORY --prompt="Shall I" \
    --length=400 --temperature=0.8 --num_samples=3

reads the best checkpoint of the run (before its first evaluation, the newest)
and prints the samples, each after the prompt if one is given. A single sample
is printed while it is drawn. A word model never draws <unk>, the unknown word.
Other ways to continue the prompt:

  --best_of=N    prints the likeliest of N samples
  --beam=N       searches for the likeliest continuation, keeping the N
                 likeliest beginnings at every token
  --interactive  continues each line that is typed, from the state after all
                 text so far. The line is read without its line break, and an
                 empty line as a line break. Ctrl-D, the end of the input, ends
                 the program
"""

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.cli import launch
from experiments.trainer.config import LARGEST
from experiments.trainer.data import default_prompt
from experiments.trainer.format import escape_controls
from experiments.trainer.records import decoded_as_utf8, finite
from experiments.trainer.trained import load
from lstm_jax.language import beam_search, sample, sample_best
from lstm_jax.language.drawing import DrawingRules
from lstm_jax.language.text_stream import TextStream

DRAWING = "top_k", "top_p", "min_p", "seed"  # without effect if --temperature=0
EXCLUDED = {  # flag: those that it cannot be combined with
  "beam": ("temperature", *DRAWING, "num_samples", "best_of", "interactive"),
  "best_of": ("num_samples", "interactive"),
  "interactive": ("num_samples",),
}


def _define_flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string("run", "", "Run directory."),
    flags.DEFINE_string(
      "prompt",
      None,
      "The text to continue. If not given, it is a line break (or the first "
      "token of the vocabulary), which is not printed; with --interactive, the "
      "first line that is typed.",
    ),
    flags.DEFINE_integer(
      "length", 400, "Tokens to draw: characters, or words.", 1, LARGEST
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
    finite(
      flags.DEFINE_float(
        "min_p",
        0.0,
        "Draw among the tokens that have at least this share of the likeliest "
        "one's probability; 0 for all.",
        lower_bound=0.0,
        upper_bound=1.0,
      )
    ),
    flags.DEFINE_integer("num_samples", 1, "How many samples.", 1, LARGEST),
    flags.DEFINE_integer(
      "seed", 0, "The same seed gives the same text.", 0, LARGEST
    ),
    flags.DEFINE_integer(
      "best_of", 1, "Print the likeliest of this many samples.", 1, LARGEST
    ),
    flags.DEFINE_integer(
      "beam",
      0,
      "Print the likeliest continuation that a beam search of this size finds; "
      "0 for samples.",
      0,
      LARGEST,
    ),
    flags.DEFINE_boolean(
      "interactive", False, "Continue each line that is typed."
    ),
  ]


def check_combination(
  options: dict[str, Any], defaults: dict[str, Any]
) -> None:
  """Raise ValueError if two options that are given exclude each other.

  Args:
    options: the value of each flag.
    defaults: the default of each flag; a flag that has it counts as not given.
  """

  def given(name):
    return options[name] != defaults[name]

  pairs = [(a, b) for a, others in EXCLUDED.items() for b in others]
  greedy = [("best_of", "temperature"), ("num_samples", "temperature")]
  for pair in pairs if options["temperature"] else pairs + greedy:
    if all(map(given, pair)):
      first, second = (f"--{name}={options[name]}" for name in pair)
      why = "all samples would be equal" if pair in greedy else "pass one"
      raise ValueError(f"{first} and {second} exclude each other: {why}")


def run(
  directory: str,
  prompt: str | None,
  length: int,
  temperature: float,
  top_k: int,
  top_p: float,
  min_p: float,
  num_samples: int,
  seed: int,
  best_of: int,
  beam: int,
  interactive: bool,
) -> list[Iterable[str]]:
  """Return samples from the best checkpoint of a run; each argument is a flag.

  A sample is an iterable of the parts of a text, which begins with the prompt
  if one is given. A single sample is drawn as its parts are iterated, unless
  it is selected by `best_of` or `beam`. With `interactive`, the only sample is
  what `converse` yields: the model's answers, without the prompt and the lines
  that it reads from standard input.

  Raises:
    ValueError: the run has no usable checkpoint, the prompt is empty or has
      unknown characters or words, or a number is out of its range.
  """
  trained = load(Path(directory))
  model, params, tokenizer = trained.model, trained.params, trained.tokenizer
  rules = DrawingRules(
    temperature,
    top_k or None,
    top_p if top_p < 1 else None,
    min_p or None,
    tokenizer.unknown_tokens,  # never drawn
  )
  if prompt is None:
    tokens = default_prompt(tokenizer)
  else:
    tokens = tokenizer.encode_known(prompt)
  if not len(tokens):
    raise ValueError(f"the prompt must have at least one {tokenizer.unit}")
  hidden = len(tokens) if prompt is None else 0  # tokens that are not shown
  key = jax.random.key(seed)
  if beam:
    suppressed = rules.suppress_tokens
    samples, _ = beam_search(
      model, params, tokens, length, beam_size=beam, suppress_tokens=suppressed
    )
    samples = samples[:1]
  elif best_of > 1:
    options = rules._asdict() | {"best_of": best_of}
    best, _ = sample_best(model, params, key, tokens, length, **options)
    samples = best[None]
  elif num_samples > 1:
    options = rules._asdict() | {"num_samples": num_samples}
    samples = sample(model, params, key, tokens, length, **options)
  else:
    stream = TextStream(model, params, tokenizer, rules)
    if interactive:
      return [converse(stream, prompt, key, length)]
    stream.read_tokens(tokens)
    shown = tokenizer.decode(tokens[hidden:])
    return [chain([shown], stream.write(key, length))]
  texts = (tokenizer.pieces(np.concatenate([tokens, row])) for row in samples)
  return [pieces[hidden:] for pieces in texts]


def converse(
  stream: TextStream, prompt: str | None, key: jax.Array, length: int
) -> Iterator[str]:
  """Yield what the model writes after the prompt, and after each typed line.

  If a line has unknown characters or words, standard error says so in at most
  500 characters, and the next line is read.
  """
  stdin = sys.stdin
  if isinstance(stdin, io.TextIOWrapper) and stdin.errors == "strict":
    # A byte that is not UTF-8 is an unknown character of its line.
    stdin.reconfigure(errors="surrogateescape")
  line = typed_line() if prompt is None else prompt
  while line is not None:
    try:
      stream.read(line or "\n")
    except ValueError as error:
      # The message may name the whole vocabulary.
      print(f"error: {error}"[:500], file=sys.stderr)
    else:
      key, key_line = jax.random.split(key)
      yield from stream.write(key_line, length)
      yield "\n"
    line = typed_line()


def typed_line() -> str | None:
  """Return a line of standard input, or None at its end."""
  terminal = sys.stdin.isatty() and sys.stdout.isatty()
  try:
    # A file of Windows has a carriage return at the end of each line.
    return decoded_as_utf8(input("> " if terminal else "").removesuffix("\r"))
  except EOFError:
    return None


def show(texts: Sequence[Iterable[str]]) -> None:
  """Print samples, part by part; in a terminal, control characters escaped."""
  escapes = sys.stdout.isatty()
  for number, text in enumerate(texts, start=1):
    if len(texts) > 1:
      print(f"=== sample {number} ===")
    for part in text:
      sys.stdout.write(escape_controls(part) if escapes else part)
      sys.stdout.flush()
    sys.stdout.write("\n")


def main() -> None:
  """Read the flags, sample and print."""
  options = {flag.name: flag.value for flag in FLAGS}
  defaults = {flag.name: flag.default for flag in FLAGS}
  check_combination(options, defaults)
  for name in DRAWING if not options["temperature"] else ():
    if options[name] != defaults[name]:
      print(
        f"warning: --{name}={options[name]} has no effect: "
        "--temperature=0 is greedy",
        file=sys.stderr,
      )
  if options["prompt"] is not None:
    options["prompt"] = decoded_as_utf8(options["prompt"])
  show(run(options.pop("run"), **options))


if __name__ == "__main__":
  FLAGS = _define_flags()
  launch(main, required=("run",))
