"""Dynamic evaluation with settings that are chosen on the preceding text.

`lstm_jax.language.dynamic_eval` explains the method. The learning rate and the
decay are chosen together, with segments of SEGMENT tokens, and then the segment
length with that rate and decay. The chosen settings have the lowest loss on the
last TUNING tokens before the text to evaluate on. Settings that are fixed stay
as they are.

A text is read segment by segment, which keeps one core busy. On a CPU, several
`threads` try one setting each at the same time, with the same results: for the
recipe `poems` on two cores, the choice takes 13 s with two threads, 18 s with
one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import jax
import numpy as np

from lstm_jax.language import LanguageModel, LanguageParams, make_batches
from lstm_jax.language.dynamic_eval import (
  Divergence,
  DynamicEvalConfig,
  dynamic_log_probs,
  dynamic_nats,
  gradient_scale,
)

RATES = 1e-6, 1e-5, 3e-5, 1e-4  # word models diverge at the larger ones
DECAYS = 5e-4, 2e-3, 2e-2
SEGMENT, SEGMENTS = 20, (10, 20, 40)  # tokens
TUNING = 20_000  # tokens to try settings on, at the end of the preceding text
# Tokens at the start of the preceding text, on which the gradient's scale is
# estimated: the root mean square of each weight's gradient over batches.
SCALE_TOKENS = 200_000
SCALE_BATCH = 32


class FixedSettings(NamedTuple):
  """Settings that are not to be chosen."""

  rate: float | None = None
  decay: float | None = None
  segment: int | None = None


class Choice(NamedTuple):
  """The chosen settings, and how they were chosen."""

  config: DynamicEvalConfig
  tuning_loss: float | None  # on the preceding text; None: nothing to choose
  num_tried: int
  num_tokens: int  # at the end of the preceding text, to try settings on

  def description(self) -> str:
    """Return how the settings were chosen, or "" if all of them were fixed."""
    if self.tuning_loss is None:
      return ""
    rate, decay, segment = self.config
    return (
      f"dynamic evaluation: rate {rate:g}, decay {decay:g} and segments of "
      f"{segment} are the best of {self.num_tried} settings on the "
      f"{self.num_tokens:,} tokens before: {self.tuning_loss:.4f} nats"
    )


def check_text_before(num_tokens: int, fixed: FixedSettings) -> None:
  """Raise ValueError if the preceding text is too short for `gradient_scale`.

  Args:
    num_tokens: the length of the preceding text.
    fixed: settings that are not to be chosen; a longer segment needs more text.
  """
  needed = _needed_tokens(fixed.segment or SEGMENT)
  if num_tokens < needed:
    raise ValueError(
      "dynamic evaluation estimates the gradient's scale on the text before "
      f"the evaluated part (--begin): it needs at least {needed:,} tokens, got "
      f"{num_tokens:,}; --protocol=cold --protocol=stateful need none"
    )


def evaluate_dynamically(
  model: LanguageModel,
  params: LanguageParams,
  before: np.ndarray,
  tokens: np.ndarray,
  fixed: FixedSettings,
  *,
  threads: int = 1,
  full: bool = False,
) -> tuple[Choice, np.ndarray]:
  """Choose the settings, and return them with the predictions of tokens[1:].

  Args:
    model: the language model.
    params: its weights.
    before: the text that precedes `tokens`, int32 [M], long enough for
      `check_text_before`. The gradient's scale is estimated on its first
      SCALE_TOKENS (at least one batch), and settings are tried on its last
      TUNING.
    tokens: the text to evaluate on, int32 [N].
    fixed: settings that are not to be chosen.
    threads: how many settings are tried at once on a CPU, each on one core.
    full: whether to return the probabilities of the whole vocabulary.

  Returns:
    (settings, log probabilities). The latter are those of tokens[1:], [N − 1],
    or if `full`, of the whole vocabulary at each place, [N − 1, V].

  Raises:
    ValueError: a setting is out of its range.
    Divergence: the weights diverge at every setting on the preceding text, or
      at the chosen one on `tokens`.
  """
  # Threads suffice, since XLA releases the interpreter's lock. An accelerator
  # gets one thread, since all settings would have to share it.
  pool = ThreadPoolExecutor(threads if jax.default_backend() == "cpu" else 1)

  def scale(segment: int) -> LanguageParams:
    count = max(SCALE_TOKENS, _needed_tokens(segment))
    batches = make_batches(before[:count], SCALE_BATCH, segment)
    return gradient_scale(model, params, batches)

  sizes = _segment_sizes(len(before), fixed)
  scales = {size: pool.submit(scale, size) for size in sizes}

  def nats(config: DynamicEvalConfig, text: np.ndarray) -> np.ndarray:
    r = scales[config.segment].result()
    return dynamic_nats(model, params, text, r, config)

  try:
    choice = _choose(nats, before, fixed, pool)
    if not full:
      return choice, -nats(choice.config, tokens)
    r = scales[choice.config.segment].result()
    return choice, dynamic_log_probs(model, params, tokens, r, choice.config)
  finally:
    pool.shutdown(cancel_futures=True)


def _choose(
  nats: Callable[[DynamicEvalConfig, np.ndarray], np.ndarray],
  before: np.ndarray,
  fixed: FixedSettings,
  pool: ThreadPoolExecutor,
) -> Choice:
  """Return the settings of the lowest loss on the end of `before`."""
  losses: dict[DynamicEvalConfig, float] = {}
  text = before[-TUNING:]

  def loss(config: DynamicEvalConfig) -> float:
    try:
      return float(nats(config, text).mean())
    except Divergence:
      return np.inf

  def find_best(configs: list[DynamicEvalConfig]) -> DynamicEvalConfig:
    if len(configs) == 1:
      return configs[0]
    untried = [config for config in configs if config not in losses]
    losses.update(zip(untried, pool.map(loss, untried), strict=True))
    chosen = min(configs, key=losses.__getitem__)
    if losses[chosen] == np.inf:
      rates = dict.fromkeys(f"{config.rate:g}" for config in configs)
      raise Divergence(
        f"dynamic evaluation diverges at every rate of {', '.join(rates)}"
      )
    return chosen

  rates = RATES if fixed.rate is None else (fixed.rate,)
  decays = DECAYS if fixed.decay is None else (fixed.decay,)
  sizes = _segment_sizes(len(before), fixed)
  pairs = product(rates, decays)
  config = find_best([DynamicEvalConfig(*pair, sizes[0]) for pair in pairs])
  config = find_best([config._replace(segment=s) for s in sorted(sizes)])
  return Choice(config, losses.get(config), len(losses), len(text))


def _segment_sizes(num_tokens: int, fixed: FixedSettings) -> list[int]:
  """Return the segment lengths to try; rate and decay are tried with the first.

  Further lengths are left out if the preceding text is too short for them.
  """
  if fixed.segment is not None:
    return [fixed.segment]
  others = (s for s in SEGMENTS if s != SEGMENT)
  return [SEGMENT, *(s for s in others if _needed_tokens(s) <= num_tokens)]


def _needed_tokens(segment: int) -> int:
  """Return how many tokens a batch of `gradient_scale` takes, with targets."""
  return SCALE_BATCH * segment + 1
