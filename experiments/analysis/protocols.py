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
from collections.abc import Iterable
from functools import cached_property
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


class Protocols:
  """Reads a text by one protocol after another.

  Args:
    members: the models; one, or an ensemble of a common vocabulary.
    texts: the text to read, and the other texts that the protocols need.
    settings: the settings of the protocols.
    names: the protocols that will be asked for. What two of them need is
      computed once.
  """

  def __init__(
    self,
    members: list[Member],
    texts: Texts,
    settings: Settings,
    names: Iterable[str],
  ):
    self._members, self._texts, self._settings = members, texts, settings
    self._names = set(names)

  def outcome(self, name: str) -> Outcome:
    """Return the result of a protocol.

    Raises:
      ValueError: the protocol is unknown or was not among the `names` of the
        constructor, or a setting is out of its range.
      Divergence: dynamic evaluation diverges.
    """
    if name not in PROTOCOLS:
      raise ValueError(f"protocol must be one of {PROTOCOLS}, got {name!r}")
    if name not in self._names:
      named = ", ".join(sorted(self._names))
      raise ValueError(
        f"protocol must be one of those named ({named}), got {name!r}"
      )
    match name:
      case "cold":
        return self._cold()
      case "stateful":
        return Outcome("stateful", self._nats(self._stateful), {}, [])
      case "dynamic":
        return self._dynamic_outcome()
      case "mixed":
        return self._mixed_dynamic_outcome()
      case _:
        return self._mixed("stateful", self._stateful)

  def _cold(self) -> Outcome:
    tokens, window = self._texts.tokens, self._settings.window
    log_probs = (-cold_nats(*m, tokens, window) for m in self._members)
    title, record = f"cold windows of {window}", {"window": window}
    return Outcome(title, -log_mean(log_probs), record, [])

  def _dynamic_outcome(self) -> Outcome:
    choices, predicted = self._dynamic
    title = "dynamic, settings of each member"
    if len(choices) == 1:
      config = choices[0].config
      title = f"dynamic, rate {config.rate:g}, decay {config.decay:g}"
    record = {"dynamic": _settings_of(choices)}
    return Outcome(title, self._nats(predicted), record, choices)

  def _mixed_dynamic_outcome(self) -> Outcome:
    choices, predicted = self._dynamic
    outcome = self._mixed("dynamic", predicted)
    return outcome._replace(
      record=outcome.record | {"mixed_dynamic": _settings_of(choices)},
      # If both protocols were named, the outcome of dynamic has the choices.
      choices=[] if "dynamic" in self._names else choices,
    )

  def _mixed(self, base: str, log_probs: np.ndarray) -> Outcome:
    trained, untrained = self._ngrams
    experts = log_probs, trained.log_probs, untrained.log_probs
    targets = self._texts.tokens[1:]
    nats = mixing.mixed_nats(experts, trained.longest, targets)
    record = {
      "order": ORDER,
      "discount": DISCOUNT,
      "rate": mixing.RATE,
      "weights": [*mixing.WEIGHTS],
    }
    title = f"mixed, {base} and n-grams"
    return Outcome(title, nats, {"mixed": record}, [])

  @cached_property
  def _stateful(self) -> np.ndarray:
    """The log probabilities of one pass over the text.

    They are of the text's tokens, [N − 1]; if mixed_stateful was named, of the
    whole vocabulary, [N − 1, V].
    """
    tokens = self._texts.tokens
    if "mixed_stateful" in self._names:
      return log_mean(stateful_log_probs(*m, tokens) for m in self._members)
    return log_mean(-stateful_nats(*m, tokens) for m in self._members)

  @cached_property
  def _dynamic(self) -> tuple[list[dynamic_eval.Choice], np.ndarray]:
    """(each member's settings, the log probabilities by dynamic evaluation).

    The log probabilities are of the text's tokens, [N − 1]; if mixed was named,
    of the whole vocabulary, [N − 1, V].
    """
    choices = []

    def predictions():  # a generator: not all are in memory at once
      for member in self._members:
        choice, predicted = dynamic_eval.evaluate_dynamically(
          *member,
          self._texts.before,
          self._texts.tokens,
          self._settings.fixed,
          threads=self._settings.threads,
          full="mixed" in self._names,
        )
        choices.append(choice)
        yield predicted

    mean = log_mean(predictions())  # which also fills choices
    return choices, mean

  @cached_property
  def _ngrams(self) -> tuple[Predictions, Predictions]:
    """The predictions of two n-gram models.

    The counts of one start from the training text, those of the other from
    nothing; both count each token of the text once it has been predicted.
    """
    vocabulary_size = len(self._members[0].params.bias)
    tokens, _, training = self._texts
    return (
      ngram_predictions(tokens, training, vocabulary_size),
      ngram_predictions(tokens, [], vocabulary_size),
    )

  def _nats(self, predicted: np.ndarray) -> np.ndarray:
    """Return the nats of each token but the first, float64 [N − 1]."""
    if predicted.ndim > 1:
      targets = self._texts.tokens[1:]
      predicted = predicted[np.arange(len(targets)), targets]
    return -predicted.astype(np.float64)


def _settings_of(choices: list[dynamic_eval.Choice]) -> Any:
  """Return the settings of dynamic evaluation; of an ensemble, a list."""
  records = [choice.config._asdict() for choice in choices]
  return records[0] if len(records) == 1 else records


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
