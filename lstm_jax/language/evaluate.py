"""Loss of a language model on a text, by three protocols of evaluation.

  cold      consecutive windows of the text, each from the zero state, like the
            evaluation of a model whose context has the length of a window
  stateful  one pass over the text, with the state carried from the first token
            to the last
  dynamic   as stateful, and the weights are trained on each segment of the text
            once it is predicted (`dynamic_eval`)

Each protocol gives the loss of every token but the first, in nats, so that
protocols can be compared position by position. The loss of the text is the mean
over these tokens.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import jax
import numpy as np

from lstm_jax.cells.checks import check_count
from lstm_jax.language.arguments import vocabulary_size_of
from lstm_jax.language.batching import Batches
from lstm_jax.language.loss import cross_entropy
from lstm_jax.language.model import LanguageModel
from lstm_jax.language.params import LanguageParams
from lstm_jax.language.programs import per_model
from lstm_jax.language.tokenizer import Tokenizer
from lstm_jax.language.tokens import check_range

# Tokens in one call, at most, unless one time step or segment has more. The
# cold protocol has only the limit of MAX_LOGITS.
CHUNK = 1000
# Logits of one call of the cold or stateful protocol, at most: 32,768 tokens at
# V 64, 209 at V 10,000, unless one window of cold_nats has more. With more of
# them, the loss of a word model took three times as long, and 80 MB instead of
# 16 (V 10,000, 1,000 tokens).
MAX_LOGITS = 2**21


def stateful_loss(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> float:
  """Return the mean of `stateful_nats`, in nats per token."""
  return float(stateful_nats(model, params, tokens).mean())


def stateful_nats(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> np.ndarray:
  """Return the loss of each token given all tokens before it, [N − 1].

  This is stateful evaluation: one pass from the zero state, with the state
  carried over the whole text.

  Args:
    model: the language model.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.

  Returns:
    Nats of tokens[1:], float64.

  Raises:
    ValueError: params are not `LanguageParams`, or tokens are not [N] with
      N ≥ 2, or not all integers in [0, V).
  """
  return _one_pass(_nats, model, params, tokens).astype(np.float64)


def stateful_log_probs(
  model: LanguageModel, params: LanguageParams, tokens: np.ndarray
) -> np.ndarray:
  """Return the distribution predicted at each place from all tokens before it.

  Its entry [k, tokens[k + 1]] is the negative of entry k of `stateful_nats`,
  which has the same arguments and raises the same errors.

  Returns:
    Logarithms of the probabilities of every token, [N − 1, V].
  """
  return _one_pass(_log_probs, model, params, tokens)


def batch_log_probs(
  model: LanguageModel, params: LanguageParams, batches: Batches
) -> Iterator[np.ndarray]:
  """Yield the predicted log-probabilities of every token, [T, B, V] per batch.

  They have the dtype of the logits. The state is zero before the first batch
  and carried from batch to batch, as in an epoch of training.

  Args:
    model: the language model.
    params: its weights.
    batches: one epoch of a text.

  Raises:
    ValueError: params are not `LanguageParams`, or tokens are not all integers
      in [0, V); raised when the first batch is asked for.
  """
  check_range("tokens", batches.tokens, vocabulary_size_of(params))
  state = model.initial_state(batches.tokens.shape[1:])
  for first, last in pairwise(batches.cuts):
    rows = batches.tokens[first : last + 1]
    log_probs, state = _log_probs(model)(params, state, rows)
    yield np.asarray(log_probs)


def _one_pass(function, model, params, tokens):
  """Return the first result of a function like `predict`, [N − 1, ...].

  The function, from `per_model`, is called on one chunk of the text after
  another, with the state carried from chunk to chunk.
  """
  vocabulary_size = vocabulary_size_of(params)
  check_tokens(tokens, vocabulary_size)
  tokens = np.asarray(tokens, np.int32)
  state, parts = model.initial_state((1,)), []
  for chunk in cut_windows(tokens, chunk_length(vocabulary_size)):
    part, state = function(model)(params, state, chunk[:, None])
    parts.append(np.asarray(part[:, 0]))
  return np.concatenate(parts)[: len(tokens) - 1]


def chunk_length(vocabulary_size: int, num_texts: int = 1) -> int:
  """Return how many time steps of N texts one call reads."""
  return max(1, min(CHUNK, MAX_LOGITS // vocabulary_size) // num_texts)


def cold_nats(
  model: LanguageModel,
  params: LanguageParams,
  tokens: np.ndarray,
  window: int = 256,
) -> np.ndarray:
  """Return the loss of each token given those before it in a window, [N − 1].

  This is evaluation with a cold start: the text is divided into consecutive
  windows, and each starts from the zero state. Window k reads
  tokens[k·W : (k + 1)·W] and predicts the token after each of them, so that its
  first prediction sees one token and its last sees W. The last window may be
  shorter.

  Args:
    model: the language model.
    params: its weights.
    tokens: the text, int32 [N], N ≥ 2.
    window: W ≥ 1, in tokens.

  Returns:
    Nats of tokens[1:], float64.

  Raises:
    ValueError: params are not `LanguageParams`; tokens are not [N] with N ≥ 2,
      or not all integers in [0, V); or W is not an integer ≥ 1.
  """
  vocabulary_size = vocabulary_size_of(params)
  check_tokens(tokens, vocabulary_size)
  tokens = np.asarray(tokens, np.int32)
  check_count("window", window)
  windows, losses = cut_windows(tokens, window), []
  logits = (windows.shape[1] - 1) * vocabulary_size  # of one window
  # As few batches as MAX_LOGITS allows, nearly equal in size: little padding.
  num_batches = math.ceil(len(windows) / max(1, MAX_LOGITS // logits))
  for batch in group_windows(windows, math.ceil(len(windows) / num_batches)):
    state = model.initial_state(batch.shape[:1])
    nats, _ = _nats(model)(params, state, batch.T)
    losses.append(np.asarray(nats, np.float64).T.ravel())
  return np.concatenate(losses)[: len(tokens) - 1]


def nats_per_character(
  tokenizer: Tokenizer, text: str, nats: float, cached: bool = False
) -> float:
  """Return the loss of a text in nats per character.

  The figure makes models over words and over characters comparable: to the loss
  of the tokens it adds the cost of spelling out each unknown word. The first
  token is not predicted and counts as one character, so that for tokens that
  are characters this is the mean over tokens. All characters of the text count,
  including the spaces that `normalize` removes.

  Args:
    tokenizer: the tokenizer of the text.
    text: the text.
    nats: the sum of the losses of the text's tokens[1:], in nats.
    cached: whether each unknown word is also predicted from the unknown words
      before it, as fits a protocol that remembers the whole text: see
      `spelling`.

  Raises:
    ValueError: the text has fewer than two characters.
  """
  if len(text) < 2:
    raise ValueError(f"a loss needs at least 2 characters, got {len(text)}")
  spelling = float(tokenizer.spelling_nats(text, cached)[1:].sum())
  return (nats + spelling) / (len(text) - 1)


def check_tokens(tokens: np.ndarray, vocabulary_size: int) -> None:
  """Raise ValueError unless tokens are [N], N ≥ 2, and all in [0, V)."""
  if np.ndim(tokens) != 1 or len(tokens) < 2:
    got = np.size(tokens) if np.ndim(tokens) == 1 else np.shape(tokens)
    raise ValueError(f"a loss needs at least 2 tokens, [N], got {got}")
  check_range("tokens", tokens, vocabulary_size)


def cut_windows(tokens: np.ndarray, length: int) -> np.ndarray:
  """Return windows of W + 1 tokens; neighbouring windows share one token.

  The last window is filled up with token 0, so that one compiled program reads
  them all. The caller cuts off what is predicted for this padding.

  Args:
    tokens: the text, int32 [N].
    length: W; for a short text, the smallest power of 2 that is at least N − 1,
      if that is less, so that texts of many lengths share a few programs.

  Returns:
    int32 [n, W + 1].
  """
  most = next_power_of_2(len(tokens) - 1)
  length = min(int(length), most)  # an int8 may overflow
  num_windows = math.ceil((len(tokens) - 1) / length)
  filled = np.zeros(num_windows * length + 1, tokens.dtype)
  filled[: len(tokens)] = tokens
  starts = np.arange(num_windows) * length
  return filled[starts[:, None] + np.arange(length + 1)]


def next_power_of_2(number: int) -> int:
  """Return the smallest power of 2 that is at least a number ≥ 1."""
  return 1 << (number - 1).bit_length()


def group_windows(windows: np.ndarray, size: int) -> np.ndarray:
  """Return windows [n, ...] in groups of m, [⌈n / m⌉, m, ...].

  The last group is filled up with windows of zeros, so that one compiled
  program reads them all. The caller cuts off what is predicted for them.
  """
  missing = -len(windows) % size
  filled = np.pad(windows, [(0, missing)] + [(0, 0)] * (windows.ndim - 1))
  return filled.reshape(-1, size, *windows.shape[1:])


def predict(model, params, state, tokens):
  """Return (nats [T, ...] of tokens[1:], state) for tokens [T + 1, ...]."""
  state, logits = model.apply(params, state, tokens[:-1])
  return cross_entropy(logits, tokens[1:]), state


_nats = per_model(predict)


@per_model
def _log_probs(model, params, state, tokens):
  """Return (log probabilities [T, ..., V], state) for tokens [T + 1, ...]."""
  state, logits = model.apply(params, state, tokens[:-1])
  return jax.nn.log_softmax(logits), state
