"""A counting n-gram model whose counts grow with the text that it reads.

With c the last k tokens, c′ the last k − 1 of them, n(c w) the count of w after
c, n(c) = Σ_w n(c w), and u(c) the number of distinct w that followed c:

  p_k(w | c) = max(n(c w) − δ, 0) / n(c) + δ u(c) / n(c) · p_{k−1}(w | c′)

p_{−1} = 1 / V, and p_k = p_{k−1} where c is new: interpolated absolute
discounting (Chen and Goodman 1999, section 2.6). For contexts of `order`
tokens, n(c w) is how often w followed c. For shorter contexts, n(c w) is the
number of distinct contexts, one token longer, that w followed (Kneser and Ney
1995; Chen and Goodman, section 2.7): w is counted after c′ only if it had not
followed c before. A context that begins where its text begins cannot be one
token longer: w is counted after it each time. The training texts are counted
first; each token of the text is counted after it has been predicted. So the
first probability of token 1 below is δ / V: only 0 has been counted.

>>> import numpy as np
>>> text = np.array([0, 1, 0, 1, 0])
>>> predictions = ngram_predictions(text, [], 2, order=1, discount=0.5)
>>> np.exp(predictions.log_probs[:, 1]).round(3).tolist()
[0.25, 0.5, 0.667, 0.167]
>>> predictions.longest.tolist()
[0, 0, 1, 1]
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.cells.checks import as_number, check_count
from lstm_jax.language.evaluate import check_tokens
from lstm_jax.language.tokens import as_tokens

ORDER = 7  # tokens of the longest context: an 8-gram model
DISCOUNT = 0.75  # δ


class Predictions(NamedTuple):
  """What the n-gram model predicts of each token but the first."""

  log_probs: np.ndarray  # of all V possible tokens, float64 [N − 1, V]
  longest: np.ndarray  # length of the longest context seen before, int [N − 1]


def ngram_predictions(
  tokens: np.ndarray,
  training: Sequence[np.ndarray],
  vocabulary_size: int,
  *,
  order: int = ORDER,
  discount: float = DISCOUNT,
) -> Predictions:
  """Return the distribution of each token given all tokens before it.

  A context has at most `order` tokens, all of this text: none reaches into the
  training texts. The first token has no prediction. Each token takes the time
  of some 10 operations on [order + 1, V] numbers. The counts take up to about
  8 (order + 1) N V bytes of memory while they are made, and half of that
  afterwards; the probabilities take 16 N V bytes.

  Args:
    tokens: the text, int32 [N], N ≥ 2.
    training: texts that are counted first, each int32 [M]; may be empty.
    vocabulary_size: V.
    order: the largest k: an (order + 1)-gram model.
    discount: δ, in (0, 1).

  Raises:
    ValueError: tokens are not [N] with N ≥ 2, a training text is not [M], a
      token is not an integer in [0, V), or order or discount is out of its
      range.
  """
  check_tokens(tokens, vocabulary_size)
  order = check_count("order", order, 0)
  vocabulary_size = int(vocabulary_size)  # an int8 may overflow
  discount = as_number("discount", discount)
  if not 0 < discount < 1:
    raise ValueError(f"discount must be in (0, 1), got {discount}")
  pieces = [
    as_tokens(piece, vocabulary_size, f"training[{i}]")
    for i, piece in enumerate(training)
  ]
  pieces = [np.asarray(piece, np.int64) for piece in (*pieces, tokens)]
  rows, counts = _count(pieces, vocabulary_size, order)
  probs = np.empty((len(tokens) - 1, vocabulary_size))
  longest = np.empty(len(tokens) - 1, int)
  for t, token in enumerate(tokens):
    contexts = rows[t, : t + 1]  # of 0, 1, ... tokens
    seen = counts[contexts]
    if t:
      probs[t - 1], longest[t - 1] = _predict(seen, discount)
    # Count `token` after the longest context that it has followed, and after
    # longer ones; a new one after all. So c′ is left out if it has followed c.
    followed = np.flatnonzero(seen[:, token])
    counts[contexts[followed[-1] if followed.size else 0 :], token] += 1
  return Predictions(np.log(probs), longest)


def _predict(counts: np.ndarray, discount: float) -> tuple[np.ndarray, int]:
  """Return p_k of the longest context that is not new, [V], and its k.

  Args:
    counts: n(c w) of the contexts of 0, 1, ... tokens, int [K, V].
    discount: δ.
  """
  totals = counts.sum(axis=1)
  # Where a context is new, so are all longer ones: the first `num` are not new.
  num = int(np.count_nonzero(totals))
  counts, totals = counts[:num], totals[:num]
  left = discount * np.count_nonzero(counts, axis=1) / totals
  # weights[k + 1], of context k, is the share that all longer contexts leave;
  # weights[0] is that of 1 / V.
  weights = np.append(np.cumprod(left[::-1])[::-1], 1.0)
  terms = np.maximum(counts - discount, 0) * (weights[1:] / totals)[:, None]
  return terms.sum(axis=0) + weights[0] / counts.shape[1], num - 1


def _count(
  pieces: list[np.ndarray], vocabulary_size: int, order: int
) -> tuple[np.ndarray, np.ndarray]:
  """Count, in the training texts, what follows the contexts of the text.

  Args:
    pieces: the training texts, and last the text, each int64 [M].
    vocabulary_size: V.
    order: the largest k.

  Returns:
    (rows, counts). rows [N, order + 1] has at [t, k] the row of `counts` for
    the k tokens before token t, and means nothing where there are fewer. counts
    [number of contexts, V], int32, has n(c w) of the contexts of the text.
  """
  text = np.concatenate(pieces)
  position = np.concatenate([np.arange(len(piece)) for piece in pieces])
  start = len(text) - len(pieces[-1])
  ids = _context_ids(text, position, vocabulary_size, order)
  rows, tables, num_rows = [], [], 0
  for k in range(order + 1):
    mine = np.unique(ids[k][start:][position[start:] >= k])
    row_of = np.full(len(text), -1)  # by id; −1 for no context of the text
    row_of[mine] = np.arange(len(mine))
    rows.append(num_rows + row_of[ids[k][start:]])
    counted = (position >= k)[:start]
    if k < order:
      counted &= _follows_first(ids[k + 1], text, position > k)[:start]
    found = row_of[ids[k][:start]]
    counted &= found >= 0
    cells = found[counted] * vocabulary_size + text[:start][counted]
    table = np.bincount(cells, minlength=len(mine) * vocabulary_size)
    tables.append(table.astype(np.int32).reshape(-1, vocabulary_size))
    num_rows += len(mine)
  return np.stack(rows, axis=1), np.concatenate(tables)


def _context_ids(
  text: np.ndarray, position: np.ndarray, vocabulary_size: int, order: int
) -> list[np.ndarray]:
  """Return the ids of the contexts of 0, 1, ... tokens, each [M].

  Two tokens have the same id for k where the k tokens before them are the same.
  An id means nothing where there are fewer than k tokens before.
  """
  ids = [np.zeros(len(text), np.int64)]
  for k in range(1, order + 1):
    keys = np.full(len(text), -1)
    keys[1:] = ids[-1][:-1] * vocabulary_size + text[:-1]
    keys[position < k] = -1
    ids.append(np.unique(keys, return_inverse=True)[1])
  return ids


def _follows_first(
  ids: np.ndarray, text: np.ndarray, exists: np.ndarray
) -> np.ndarray:
  """Return where a token follows its context for the first time, [M].

  Where there is no such context, it is True.
  """
  first = ~exists
  places = np.flatnonzero(exists)
  pairs = ids[places] * (text.max() + 1) + text[places]
  first[places[np.unique(pairs, return_index=True)[1]]] = True
  return first
