"""How dynamic evaluation is to learn, chosen on the text before.

Rate and decay are chosen together, at segments of SEGMENT, and then the segment
at that rate and decay; what is given is not chosen.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.trainer.run_dir import Trained
from lstm_jax.language import make_batches
from lstm_jax.language.evaluate import (
  Divergence,
  DynamicEvalConfig,
  dynamic_nats,
  gradient_scale,
)

RATES = 1e-6, 1e-5, 3e-5, 1e-4  # a model over words diverges at the larger
DECAYS = 2e-3, 2e-2, 1e-1
SEGMENT, SEGMENTS = 20, (10, 20, 40)
TUNING = 20_000  # tokens that choose among them
SCALE_TOKENS = 200_000  # of the training text, for the gradient's scale
SCALE_STREAMS = 32


class Given(NamedTuple):
  """What of a `Dynamic` is not to be chosen."""

  rate: float | None = None
  decay: float | None = None
  segment: int | None = None


def check_before(tokens: int, given: Given) -> None:
  """Raise ValueError where the text before is too short for the scale."""
  needed = _needed(given.segment or SEGMENT)
  if tokens < needed:
    raise ValueError(
      "dynamic evaluation learns the gradient's scale from the text before "
      f"--begin: at least {needed:,} tokens, got {tokens:,}; "
      "--protocol=cold --protocol=stateful need none"
    )


def evaluate_dynamically(
  trained: Trained,
  before: np.ndarray,
  tokens: np.ndarray,
  given: Given,
  console: Console,
) -> tuple[DynamicEvalConfig, np.ndarray]:
  """Return how the weights learnt, and the nats of tokens[1:].

  Args:
    trained: the model.
    before: the text before, int32 [M].
    tokens: the text, int32 [N].
    given: what is not to be chosen.
    console: is told what was chosen.

  Raises:
    ValueError: a number is out of its range.
    Divergence: the weights learn to predict nothing, whatever is chosen.
  """
  model, params = trained.model, trained.params
  scales: dict[int, Any] = {}

  def nats(how: DynamicEvalConfig, text: np.ndarray) -> np.ndarray:
    size = how.segment
    if size not in scales:
      streams = make_batches(before[:SCALE_TOKENS], SCALE_STREAMS, size)
      scales[size] = gradient_scale(model, params, streams)
    return dynamic_nats(model, params, text, scales[size], how)

  how = _chosen(nats, before, given, console)
  return how, nats(how, tokens)


def _chosen(
  nats: Callable[[DynamicEvalConfig, np.ndarray], np.ndarray],
  before: np.ndarray,
  given: Given,
  console: Console,
) -> DynamicEvalConfig:
  """Return the best way to learn on the end of the text before."""
  found: dict[DynamicEvalConfig, float] = {}
  text = before[-TUNING:]

  def best(ways: list[DynamicEvalConfig]) -> DynamicEvalConfig:
    if len(ways) == 1:
      return ways[0]
    for way in ways:
      if way not in found:
        try:
          found[way] = float(nats(way, text).mean())
        except Divergence:
          found[way] = np.inf
    chosen = min(ways, key=found.__getitem__)
    if found[chosen] == np.inf:
      rates = [f"{way.rate:g}" for way in ways]
      told = ", ".join(dict.fromkeys(rates))
      raise Divergence(f"dynamic evaluation diverges at every rate of {told}")
    return chosen

  rates = RATES if given.rate is None else (given.rate,)
  decays = DECAYS if given.decay is None else (given.decay,)
  size = given.segment or SEGMENT
  how = best(
    [DynamicEvalConfig(*pair, size) for pair in product(rates, decays)]
  )
  if given.segment is None:
    sizes = [s for s in SEGMENTS if s == size or _needed(s) <= len(before)]
    how = best([how._replace(segment=s) for s in sizes])
  if found:
    console.print(
      f"dynamic evaluation: rate {how.rate:g}, decay {how.decay:g} and "
      f"segments of {how.segment} are the best of {len(found)} ways on the "
      f"{len(text):,} tokens before: {found[how]:.4f} nats",
      soft_wrap=True,
    )
  return how


def _needed(segment: int) -> int:
  return SCALE_STREAMS * segment + 1
