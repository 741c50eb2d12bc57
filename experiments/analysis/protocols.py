"""A text read by each protocol of evaluation, with one model or an ensemble.

  cold            windows, each read from the zero state
  stateful        one pass over the whole text
  dynamic         dynamic evaluation: the weights adapt to the text already read
  mixed           dynamic, mixed with n-gram models that read the same text
  mixed_stateful  stateful, mixed likewise

The probability of a token by an ensemble is the mean of its members'. In
dynamic evaluation each member adapts by itself, with settings of its own.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from experiments.analysis import dynamic_eval, mixing
from lstm_jax.language import LanguageModel, LanguageParams
from lstm_jax.language.evaluate import (
  cold_nats,
  stateful_log_probs,
  stateful_nats,
)
from lstm_jax.language.ngram import (
  DISCOUNT,
  ORDER,
  Predictions,
  ngram_predictions,
)

MIXED = "mixed", "mixed_stateful"
PROTOCOLS = "cold", "stateful", "dynamic", *MIXED


class Member(NamedTuple):
  """One model of an ensemble."""

  model: LanguageModel
  params: LanguageParams


class Texts(NamedTuple):
  """The text to evaluate on, and the other texts that the protocols read."""

  tokens: np.ndarray  # the text to evaluate on, int32 [N]
  before: np.ndarray  # the text before it, which settings are chosen on, [M]
  training: list[np.ndarray]  # training text outside `tokens`, for n-grams


class Settings(NamedTuple):
  """Settings of the protocols."""

  window: int  # tokens of a cold window
  fixed: dynamic_eval.FixedSettings  # of dynamic evaluation; others are chosen
  threads: int = 1  # how many settings of dynamic evaluation to try at once


class Outcome(NamedTuple):
  """The result of one protocol."""

  title: str
  nats: np.ndarray  # of each token but the first, [N − 1]
  record: dict[str, Any]  # settings, by their names in evaluation.json
  choices: list[dynamic_eval.Choice]  # the members' settings, to be printed


def outcomes(
  members: list[Member],
  texts: Texts,
  settings: Settings,
  names: Collection[str],
) -> Iterator[tuple[str, Outcome]]:
  """Read a text by one protocol after another: yield (name, its result).

  What two protocols need is computed once. The protocols come in the order of
  PROTOCOLS.

  Args:
    members: the models; one, or an ensemble of a common vocabulary.
    texts: the text to read, and the other texts that the protocols need.
    settings: the settings of the protocols.
    names: of the protocols, each one of PROTOCOLS.

  Raises:
    ValueError: a setting is out of its range.
    Divergence: dynamic evaluation diverges.
  """
  tokens, before, training = texts

  @cache
  def stateful() -> np.ndarray:
    """Return log probabilities of the text's tokens, [N − 1].

    If a mixture needs them, those of the whole vocabulary, [N − 1, V].
    """
    if "mixed_stateful" in names:
      return log_mean(stateful_log_probs(*m, tokens) for m in members)
    return log_mean(-stateful_nats(*m, tokens) for m in members)

  @cache
  def dynamic() -> tuple[list[dynamic_eval.Choice], np.ndarray]:
    """Return (each member's settings, log probabilities as of `stateful`)."""
    choices = []

    def predictions():  # a generator: not all are in memory at once
      for member in members:
        choice, predicted = dynamic_eval.evaluate_dynamically(
          *member,
          before,
          tokens,
          settings.fixed,
          threads=settings.threads,
          full="mixed" in names,
        )
        choices.append(choice)
        yield predicted

    mean = log_mean(predictions())  # which also fills choices
    return choices, mean

  @cache
  def ngrams() -> tuple[Predictions, Predictions]:
    """Return the predictions of two n-gram models.

    The counts of one start from the training text, those of the other from
    nothing; both count each token of the text once it has been predicted.
    """
    size = len(members[0].params.bias)
    return (
      ngram_predictions(tokens, training, size),
      ngram_predictions(tokens, [], size),
    )

  def nats(predicted: np.ndarray) -> np.ndarray:
    if predicted.ndim > 1:
      predicted = predicted[np.arange(len(tokens) - 1), tokens[1:]]
    return -predicted.astype(np.float64)

  def mixed(base: str, log_probs: np.ndarray) -> Outcome:
    trained, untrained = ngrams()
    experts = log_probs, trained.log_probs, untrained.log_probs
    record = {
      "order": ORDER,
      "discount": DISCOUNT,
      "rate": mixing.RATE,
      "weights": [*mixing.WEIGHTS],
    }
    mixture = mixing.mixed_nats(experts, trained.longest, tokens[1:])
    title = f"mixed, {base} and n-grams"
    return Outcome(title, mixture, {"mixed": record}, [])

  def outcome(name: str) -> Outcome:
    if name == "cold":
      window = settings.window
      log_probs = (-cold_nats(*m, tokens, window) for m in members)
      title, record = f"cold windows of {window}", {"window": window}
      return Outcome(title, -log_mean(log_probs), record, [])
    if name == "stateful":
      return Outcome(name, nats(stateful()), {}, [])
    if name == "mixed_stateful":
      return mixed("stateful", stateful())
    choices, predicted = dynamic()
    records: Any = [choice.config._asdict() for choice in choices]
    title = "dynamic, settings of each member"
    if len(choices) == 1:
      (records,) = records
      title = "dynamic, rate {rate:g}, decay {decay:g}".format(**records)
    if name == "dynamic":
      return Outcome(title, nats(predicted), {"dynamic": records}, choices)
    result = mixed("dynamic", predicted)
    return result._replace(
      record=result.record | {"mixed_dynamic": records},
      # If both protocols were named, the outcome of dynamic has the choices.
      choices=[] if "dynamic" in names else choices,
    )

  for name in PROTOCOLS:
    if name in names:
      yield name, outcome(name)


def log_mean(log_probs: Iterable[np.ndarray]) -> np.ndarray:
  """Return the logarithm of the mean of probabilities, from their logarithms.

  Args:
    log_probs: at least one array; all have the same shape.
  """
  arrays = iter(log_probs)
  total, count = next(arrays), 1
  for array in arrays:
    total, count = np.logaddexp(total, array), count + 1
  return total - math.log(count)
