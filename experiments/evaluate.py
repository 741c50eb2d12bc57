"""Evaluate a trained model on text that it was not trained on.

  python -m experiments.evaluate --run=FOLDER

prints the loss of every prediction in the run's held-out split by three
protocols (`lstm_jax.language.evaluate`): cold windows of 256, one stateful
pass, and dynamic evaluation, whose rate and decay are chosen on text that comes
before the held-out split: the run's development text, or else the end of what
it was trained on. Other parts of the corpus, such as the middle of a 90/5/5
split, are given by --begin and --end. The figures are kept in the run's folder,
in evaluation.json, beside those of other protocols on the same text. Beside the
loss of each token stands that of each character, for which a model over words
also pays the spelling of words that it does not know: by that figure it
compares with a model over characters.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments import run_folder
from experiments.corpus import read_again, sha256_of
from experiments.program import finite, launch, plain_console
from lstm_jax.language import make_streams, read_text
from lstm_jax.language.evaluate import (
  Dynamic,
  cold_nats,
  dynamic_nats,
  gradient_scale,
  nats_per_character,
  stateful_nats,
)
from lstm_jax.language.words import normal

PROTOCOLS = "cold", "stateful", "dynamic"
RATES = 1e-6, 1e-5, 3e-5, 1e-4  # a model over words diverges at the larger
DECAYS = 2e-3, 2e-2, 1e-1
TUNING = 20_000  # tokens that choose among them
SCALE_TOKENS = 200_000  # of the training text, for the gradient's scale
SCALE_STREAMS = 32
SAME = "corpus_sha256", "begin", "end", "update"  # of figures side by side


def run(
  run: str,
  corpus: str,
  begin: float | None,
  end: float,
  protocol: list[str],
  window: int,
  segment: int,
  rate: float | None,
  decay: float | None,
  console: Console,
) -> dict[str, Any]:
  """Evaluate, print and record; return the record.

  Raises:
    ValueError: the run or the corpus is not usable, or a number is out of its
      range.
  """
  trained = run_folder.load(Path(run))
  config = json.loads((Path(run) / run_folder.CONFIG).read_text("utf-8"))
  whole = read_text(corpus) if corpus else read_again(config)
  corpus, vocabulary = corpus or config["corpus"], trained.vocabulary
  begin = 1 - config["split"] if begin is None else begin
  first, last = (int(share * len(whole) + 1e-6) for share in (begin, end))
  part = whole[first:last]
  text, before = vocabulary.encode(part), vocabulary.encode(whole[:first])
  if not 0 <= begin < end <= 1 or len(text) < 2:
    raise ValueError(
      "--begin and --end must be shares of the corpus with at least 2 tokens "
      f"between them, got {begin} and {end} of {len(whole):,} characters"
    )
  if "dynamic" in protocol and len(before) < SCALE_STREAMS * segment + 1:
    raise ValueError(
      "dynamic evaluation learns the gradient's scale from the text before "
      f"--begin: at least {SCALE_STREAMS * segment + 1:,} tokens, "
      f"got {len(before):,}; --protocol=cold --protocol=stateful need none"
    )
  unit = vocabulary.unit
  console.print(
    f"run     {run}, of update {trained.step}\n"
    f"text    {corpus}: characters {first:,} to {last:,} of {len(whole):,}",
    soft_wrap=True,
  )
  spelling = float(vocabulary.spelling(part)[1:].sum())
  if vocabulary.stand_ins:
    unknown = np.isin(text[1:], vocabulary.stand_ins).mean()
    console.print(
      f"words   {len(text):,}, of them {unknown:.2%} unknown, whose spelling "
      f"costs {spelling / (len(part) - 1):.4f} nats per character;\n"
      f"        {len(part) - len(normal(part)):,} blanks are not in their "
      "normal form and cost nothing",
      soft_wrap=True,
    )
  model, params = trained.model, trained.params
  record: dict[str, Any] = {
    "corpus": corpus,
    "corpus_sha256": sha256_of(whole),
    "update": trained.step,
    "begin": begin,
    "end": end,
    "tokens": unit,
    "predictions": len(text) - 1,
    "characters": len(part) - 1,
    "spelling": spelling,
    "device": run_folder.device_name(),
    "nats": {},
    "nats_per_character": {},
  }
  table = Table(box=SIMPLE_HEAD, pad_edge=False)
  table.add_column("protocol")
  units = dict.fromkeys((unit, "character"))
  for name in (*(f"nats/{u[:4]}" for u in units), "bits/char", "perplexity"):
    table.add_column(name, justify="right", no_wrap=True)
  for name in PROTOCOLS:
    if name not in protocol:
      continue
    title = name
    if name == "cold":
      title = f"cold windows of {window}"
      nats = cold_nats(model, params, text, window)
      record["window"] = window
    elif name == "stateful":
      nats = stateful_nats(model, params, text)
    else:
      tuning = make_streams(before[:SCALE_TOKENS], SCALE_STREAMS, segment)
      scale = gradient_scale(model, params, tuning)
      how = _choose(trained, before, scale, segment, rate, decay, console)
      title = f"dynamic, rate {how.rate:g}, decay {how.decay:g}"
      nats = dynamic_nats(model, params, text, scale, how)
      record["dynamic"] = how._asdict()
    mean = float(nats.mean())
    spelt = nats_per_character(vocabulary, part, float(nats.sum()))
    record["nats"][name] = mean
    record["nats_per_character"][name] = spelt
    losses = {unit: mean, "character": spelt}
    table.add_row(
      title,
      *(f"{losses[u]:.4f}" for u in units),
      f"{spelt / math.log(2):.4f}",
      f"{math.exp(mean):.3f}",
    )
  console.print(table)
  path = Path(run) / run_folder.EVALUATION
  run_folder.write_json(path, _with_earlier(path, record))
  console.print(f"saved in {path}", soft_wrap=True)
  return record


def _with_earlier(path: Path, record: dict[str, Any]) -> dict[str, Any]:
  """Return the record, and what the file has of other protocols on the same."""
  try:
    earlier = json.loads(path.read_text("utf-8"))
    if any(earlier[name] != record[name] for name in SAME):
      return record
    both = earlier | record
    for name in ("nats", "nats_per_character"):
      both[name] = earlier[name] | record[name]
  except (OSError, ValueError, KeyError, TypeError):  # none, or no evaluation
    return record
  return both


def _choose(
  trained: run_folder.Trained,
  before: np.ndarray,
  scale: Any,
  segment: int,
  rate: float | None,
  decay: float | None,
  console: Console,
) -> Dynamic:
  """Return the best rate and decay on the end of the text before."""
  rates = RATES if rate is None else (rate,)
  decays = DECAYS if decay is None else (decay,)
  ways = [Dynamic(*pair, segment) for pair in itertools.product(rates, decays)]
  if len(ways) == 1:
    return ways[0]
  text, found = before[-TUNING:], {}
  for way in ways:
    try:
      nats = dynamic_nats(trained.model, trained.params, text, scale, way)
    except ValueError:  # it diverges
      continue
    found[way] = float(nats.mean())
  if not found:
    raise ValueError(f"dynamic evaluation diverges at every rate of {rates}")
  best = min(found, key=found.__getitem__)
  console.print(
    f"dynamic evaluation: rate {best.rate:g} and decay {best.decay:g} are the "
    f"best of {len(ways)} on the {len(text):,} tokens before"
  )
  return best


def _flags() -> list[flags.FlagHolder]:
  return [
    flags.DEFINE_string("run", None, "Folder of the run.", required=True),
    flags.DEFINE_string("corpus", "", "The text; empty for the run's own."),
    finite(
      flags.DEFINE_float(
        "begin",
        None,
        "Share of the corpus at which evaluation begins; if not given, where "
        "the run's held-out split does.",
        lower_bound=0.0,
      )
    ),
    finite(
      flags.DEFINE_float(
        "end", 1.0, "Share of the corpus at which it ends.", lower_bound=0.0
      )
    ),
    flags.DEFINE_multi_enum(
      "protocol", list(PROTOCOLS), PROTOCOLS, "Repeat for several."
    ),
    flags.DEFINE_integer("window", 256, "Tokens of a cold window.", 1),
    flags.DEFINE_integer(
      "segment", 20, "Tokens that dynamic evaluation reads at once.", 1
    ),
    finite(
      flags.DEFINE_float(
        "rate", None, "Its learning rate; chosen if not given.", 0.0
      )
    ),
    finite(
      flags.DEFINE_float(
        "decay",
        None,
        "Its pull back to the first weights, in [0, 1]; chosen if not given.",
        0.0,
      )
    ),
  ]


def main() -> None:
  """Read the flags and evaluate."""
  run(**{flag.name: flag.value for flag in FLAGS}, console=plain_console())


if __name__ == "__main__":
  FLAGS = _flags()
  launch(main)
