"""A language model mixed with n-gram models that read the same text.

The mixture is geometric (log-linear), and its weights learn while it reads. The
experts are the language model, an n-gram model whose counts start from the
training text, and an n-gram model that counts only what it has read. The
product of their distributions, each raised to a power, is normalized over the
vocabulary:

  log p(w) = Σ_e (α_e + β_{e,k}) log p_e(w) − log Z

where k is the length of the longest context that the first n-gram model has
seen before. α starts at WEIGHTS and β at 0; once a token y has been predicted,
α_e and β_{e,k} take a step of gradient descent on its loss, with the learning
rate η (RATE):

  −η (Σ_w p(w) log p_e(w) − log p_e(y))

The experts predict each token from the text before it alone, and so does the
mixture. Reference: Mattern (2013), Linear and geometric mixtures, section 3.

WEIGHTS and RATE were chosen on development splits of Tiny Shakespeare and the
poems.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.language import Tokenizer

WEIGHTS = 0.5, 0.4, 0.1  # of the language model and of the n-gram models
RATE = 5e-4  # η
# The most probabilities that a model may predict: one for every distinct
# character at every place. An n-gram model takes 8 bytes for each, and up to 54
# while it counts, 3.6 GB in all (measured with random characters; other texts
# have fewer contexts).
MAX_PROBABILITIES = 2**26


def check_mixable(tokenizer: Tokenizer, num_tokens: int) -> None:
  """Raise ValueError unless a model can be mixed on a text of this length.

  Args:
    tokenizer: the model's tokenizer, which must be of characters.
    num_tokens: the length of the text, in characters.
  """
  if tokenizer.unit != "character":
    raise ValueError(
      f"mixing is for models of characters, got a model of {tokenizer.unit}s: "
      "--protocol=dynamic evaluates it"
    )
  if num_tokens * tokenizer.size > MAX_PROBABILITIES:
    raise ValueError(
      f"mixing keeps the probability of every character at every place, at "
      f"most {MAX_PROBABILITIES:,}: got {num_tokens:,} characters of "
      f"{tokenizer.size:,} distinct; --begin and --end select fewer"
    )


def mixed_nats(
  experts: Sequence[np.ndarray], longest: np.ndarray, targets: np.ndarray
) -> np.ndarray:
  """Return the loss of each token by the mixture, float64 [N − 1].

  It is computed in the dtype of the language model's probabilities.

  Args:
    experts: log probabilities of every token, [N − 1, V]: those of the language
      model and of the two n-gram models, in the order of WEIGHTS.
    longest: k, the length of the longest known context at each place, int
      [N − 1].
    targets: the text without its first token, int32 [N − 1].

  Raises:
    ValueError: the models have different vocabularies or texts of different
      lengths.
  """
  shapes = [expert.shape for expert in experts]
  if len(set(shapes)) > 1:
    raise ValueError(
      "the models must predict the same tokens of the same vocabulary, got "
      f"probabilities of shapes {', '.join(map(str, shapes))}"
    )
  dtype = experts[0].dtype
  stacked = np.stack([expert.astype(dtype) for expert in experts], axis=1)
  alpha = np.array(WEIGHTS, dtype)
  weights = alpha, np.zeros((longest.max() + 1, len(alpha)), dtype)
  inputs = stacked, longest, targets
  return np.asarray(_scan(weights, dtype.type(RATE), inputs), np.float64)


@jax.jit
def _scan(weights, rate, inputs):
  """Return the nats [N − 1]; the weights α [E] and β [K, E], by k, learn."""

  def body(weights, inputs):
    (alpha, beta), (experts, k, target) = weights, inputs
    log_p = jax.nn.log_softmax((alpha + beta[k]) @ experts)
    step = rate * (experts[:, target] - experts @ jnp.exp(log_p))
    return (alpha + step, beta.at[k].add(step)), -log_p[target]

  return lax.scan(body, weights, inputs)[1]
