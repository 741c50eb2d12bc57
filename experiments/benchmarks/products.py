"""Only the matrix products of our training step with LSTMs, compiled by XLA.

The recurrent products of forward and backward run time step by time step in a
scan; each other product is computed once for the whole sequence. Outside of the
scans, no product uses a result of another. Embedding lookups, gates, softmax
and Adam are left out. The time says which share of our step the products are; a
library with faster products, such as PyTorch, can take less.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.proof import Peer, compile_program
from lstm_jax.cells.affine import product_transposed
from lstm_jax.language import ModelConfig
from lstm_jax.language.model import reads_table


def make_products(
  config: ModelConfig, vocabulary_size: int, seq_len: int, batch_size: int
) -> Peer:
  """Return the products of a language model's training step as a peer.

  Args:
    config: configuration of a model whose cell is `lstm`.
    vocabulary_size: V.
    seq_len: T.
    batch_size: B.
  """
  dtype = config.compute_dtype or jnp.float32
  size, hidden = config.embedding_size, config.hidden_size
  num_tokens = seq_len * batch_size
  has_table = reads_table(config.cell, vocabulary_size, num_tokens)
  # The rows that W_x multiplies: of the embedding, for the table W_e W_x.
  rows = vocabulary_size if has_table else num_tokens
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape) / 64, dtype)

  def product(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)

  def weight_product(xs, das):
    return jnp.einsum(
      "tbh,tbk->hk", xs, das, preferred_element_type=jnp.float32
    )

  def outputs_and_weights():
    return normal(seq_len, batch_size, hidden), normal(hidden, 4 * hidden)

  arguments = {
    # The lowest layer's inputs, its W_x, and the gradient of their product.
    "embedding": (normal(rows, size), normal(size, 4 * hidden)),
    "dinputs": normal(rows, 4 * hidden),
    # Each layer has outputs of its own: XLA computes equal products only once.
    "w_x": [outputs_and_weights() for _ in range(config.num_layers - 1)],
    "w_h": [outputs_and_weights() for _ in range(config.num_layers)],
    "readout": normal(hidden, vocabulary_size),
    "h": normal(batch_size, hidden),
    "hs": normal(seq_len, batch_size, hidden),
    "das": normal(seq_len, batch_size, 4 * hidden),
    "dy": normal(seq_len, batch_size, vocabulary_size),
  }

  def products(a):
    results = [product(*a["embedding"]), product(a["hs"], a["readout"])]
    results += [product(a["dy"], a["readout"].T)]
    results += [weight_product(a["hs"], a["dy"])]
    results += [product(a["dinputs"], a["embedding"][1].T)]
    results += [product(a["embedding"][0].T, a["dinputs"])]
    for hs, w_x in a["w_x"]:
      results += [product(hs, w_x), product(a["das"], w_x.T)]
      results += [weight_product(hs, a["das"])]
    for hs, w_h in a["w_h"]:

      def forward(h, _, w_h=w_h):
        i, f, g, o = jnp.split(product(h, w_h), 4, axis=-1)
        return (i + f + g + o).astype(dtype), None  # so XLA needs all columns

      def backward(dh, da, w_h=w_h):
        # As in a training step, da waits for dh and has 4H columns.
        da = (da[:, :hidden] + dh).astype(dtype)
        da = jnp.concatenate([da] * 4, axis=-1)
        return product_transposed(da, w_h), None

      results.append(jax.lax.scan(forward, a["h"], None, length=seq_len)[0])
      zeros = jnp.zeros((batch_size, hidden), jnp.float32)
      results.append(jax.lax.scan(backward, zeros, a["das"])[0])
      results.append(weight_product(hs, a["das"]))
    return results

  program, seconds, size = compile_program(products, arguments)
  return Peer(lambda: jax.block_until_ready(program(arguments)), seconds, size)
