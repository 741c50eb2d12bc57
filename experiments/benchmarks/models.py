"""A language model's training step with each library's recurrent layers.

It is a whole Adam step of embedding, layers, readout and cross-entropy. With
JAX it is compiled, and its weights and optimizer state are donated. `lstm_jax`
and `autodiff` are our whole `language_model`: if a batch has at least V tokens,
the lowest layer reads rows of the table W_e W_x (see `reads_table`); `lstm_jax`
computes the readout's gradient with the loss. The other JAX libraries provide
only layers: around these, embedding and readout are the same few lines of
jax.numpy. "lstm_jax layer" is our `unroll` in these lines. PyTorch runs
eagerly. `products_alone` has only our step's matrix products, compiled by XLA:
its time says which share of our step they are; a library with faster products,
such as PyTorch, can take less.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.benchmarks.layers import (
  LAYERS,
  Layer,
  as_tensor,
  torch_device,
  torch_layer,
)
from experiments.benchmarks.timing import (
  Makers,
  Peer,
  Unsupported,
  compile_program,
  prove,
  tolerance,
)
from experiments.trainer.config import CELLS
from lstm_jax.cells.affine import product_transposed
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  ModelConfig,
  language_model,
)
from lstm_jax.language.model import reads_table
from lstm_jax.sequence import Adjoint, Autodiff, Explicit

LEARNING_RATE = 1e-3
BFLOAT16_TOLERANCE = 5e-2


class Problem(NamedTuple):
  """A language model, a batch, and the expected loss and gradient."""

  config: ModelConfig
  vocabulary_size: int
  params: LanguageParams
  tokens: np.ndarray  # [T, B]
  targets: np.ndarray  # [T, B]
  loss: float  # of our scan in float32, also if the products are in bfloat16
  gradient: LanguageParams  # likewise

  @property
  def tolerance(self) -> float:
    """The relative error that is allowed."""
    low = self.config.compute_dtype is not None
    return BFLOAT16_TOLERANCE if low else tolerance()


def make_problem(
  hidden_size: int,
  seq_len: int,
  batch_size: int,
  num_layers: int,
  vocabulary_size: int,
  dtype: str = "float32",
  cell: str = "lstm",
) -> Problem:
  """Return a language model of these sizes with a batch of random tokens."""
  exact = ModelConfig(
    cell=CELLS[cell], hidden_size=hidden_size, num_layers=num_layers
  )
  config = exact
  if dtype != "float32":
    config = replace(exact, compute_dtype=jnp.dtype(dtype))
  model = language_model(exact, vocabulary_size)
  params = model.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  text = rng.integers(0, vocabulary_size, (seq_len + 1, batch_size))
  text = text.astype(np.int32)
  tokens, targets = text[:-1], text[1:]
  reference = jax.jit(jax.value_and_grad(our_loss(model)))
  with jax.default_matmul_precision("highest"):  # on a GPU, not TF32
    loss, gradient = reference(params, tokens, targets)
  return Problem(
    config, vocabulary_size, params, tokens, targets, float(loss), gradient
  )


def our_loss(model: LanguageModel) -> Callable:
  """Return (params, tokens, targets) -> a model's loss from the zero state."""

  def loss(params, tokens, targets):
    state = model.initial_state(tokens.shape[1:])
    return model.loss(params, state, tokens, targets)[0]

  return loss


def lstm_jax(
  problem: Problem,
  devices: int = 1,
  adjoint: Adjoint = Explicit(),
  implementation: Any = None,
) -> Peer:
  """Return the peer of our model, with the gradient of `adjoint`."""
  config = replace(problem.config, implementation=implementation)
  model = language_model(config, problem.vocabulary_size, adjoint=adjoint)
  loss = our_loss(model)
  name = "autodiff" if isinstance(adjoint, Autodiff) else "lstm_jax"
  return _make_peer(name, loss, problem.params, problem, lambda w: w, devices)


def autodiff(problem: Problem, devices: int = 1) -> Peer:
  """Return the peer of our model's forward pass, differentiated by JAX."""
  return lstm_jax(problem, devices, Autodiff())


def jax_peer(
  name: str, make_layer: Callable[[str, Any], Layer]
) -> Callable[..., Peer]:
  """Return the maker of the training step with a JAX library's layers.

  Args:
    name: of the peer.
    make_layer: (cell, weights) -> the layer.
  """

  def make(problem: Problem, devices: int = 1) -> Peer:
    if problem.config.compute_dtype is not None:
      raise Unsupported("compared in float32 only")
    layers = [make_layer("lstm", weights) for weights in problem.params.layers]

    def loss(params, tokens, targets):
      embedding, weights, readout, bias = params
      x = embedding[tokens]
      for layer, w in zip(layers, weights, strict=True):
        x = layer.apply(w, x)
      logits = x @ readout + bias
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
      return nats.mean()

    def convert(ours):
      weights = [
        layer.convert(w) for layer, w in zip(layers, ours.layers, strict=True)
      ]
      return ours.embedding, weights, ours.readout, ours.bias

    p = problem.params
    params = p.embedding, [layer.params for layer in layers], p.readout, p.bias
    return _make_peer(name, loss, params, problem, convert, devices)

  return make


def _make_peer(
  name, loss, params, problem: Problem, convert, devices: int
) -> Peer:
  """Check the gradient of a JAX loss, and compile its training step.

  Several devices share the batch: each computes the gradient of its sequences,
  and the mean of these is taken once, for every library in the same way.
  """
  batch = jnp.asarray(problem.tokens), jnp.asarray(problem.targets)
  value_and_grad = jax.value_and_grad(loss)
  if problem.tokens.shape[1] % devices:
    raise Unsupported(f"{devices} devices do not divide the batch")
  if devices > 1:
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec(None, "data")
    params = jax.device_put(params, NamedSharding(mesh, whole))
    batch = jax.device_put(batch, NamedSharding(mesh, rows))
    local = value_and_grad

    def mean_value_and_grad(*arguments):
      return lax.pmean(local(*arguments), "data")

    value_and_grad = jax.shard_map(
      mean_value_and_grad,
      mesh=mesh,
      in_specs=(whole, rows, rows),
      out_specs=whole,
      check_vma=False,  # the check refuses the scans of some libraries
    )
  gradient = partial(jax.jit(value_and_grad), params, *batch)
  expected = problem.loss, convert(problem.gradient)
  prove(name, gradient, expected, problem.tolerance)
  optimizer = optax.adam(LEARNING_RATE)

  def train_step(params, state, tokens, targets):
    value, gradient = value_and_grad(params, tokens, targets)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  train_state = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
  program, seconds, size = compile_program(
    train_step, *train_state, *batch, donate=(0, 1)
  )

  def run():
    *train_state[:], value = program(*train_state, *batch)
    return value

  return Peer(run, seconds, size)


def pytorch(problem: Problem) -> Peer:
  """Return PyTorch's peer: eager nn.Embedding, LSTM, Linear and fused Adam."""
  import torch
  from torch import nn

  config, ours = problem.config, problem.params
  device = torch_device()
  low = config.compute_dtype is not None
  embedding = nn.Embedding(problem.vocabulary_size, config.embedding_size)
  readout = nn.Linear(config.hidden_size, problem.vocabulary_size)
  stack = torch_layer("lstm", ours.layers)
  model = nn.ModuleList([embedding, stack, readout]).to(device)
  # Our model has one bias: PyTorch's second one is zero and not trained.
  for k in range(config.num_layers):
    getattr(stack, f"bias_hh_l{k}").requires_grad_(False)

  with torch.no_grad():
    embedding.weight.copy_(as_tensor(ours.embedding))
    readout.weight.copy_(as_tensor(ours.readout.T))
    readout.bias.copy_(as_tensor(ours.bias))
  weights = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.Adam(weights, LEARNING_RATE, fused=True)
  tokens = as_tensor(problem.tokens).long()
  targets = as_tensor(problem.targets).long().ravel()

  def loss_and_gradient():
    with torch.autocast(device, torch.bfloat16, enabled=low):
      hs, _ = stack(embedding(tokens))
      logits = readout(hs).reshape(-1, problem.vocabulary_size)
    loss = nn.functional.cross_entropy(logits.float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return loss

  def results():
    loss = loss_and_gradient()
    # Ours are [in, out]; PyTorch's are [out, in], but for the embedding.
    arrays = [embedding.weight.grad]
    for k in range(config.num_layers):
      for name in ("weight_ih", "weight_hh", "bias_ih"):
        arrays.append(getattr(stack, f"{name}_l{k}").grad)
    arrays += [readout.weight.grad, readout.bias.grad]
    arrays[1:] = [x.mT if x.ndim > 1 else x for x in arrays[1:]]
    return [loss.item(), *(x.float().cpu().numpy() for x in arrays)]

  try:
    prove(
      "pytorch", results, (problem.loss, problem.gradient), problem.tolerance
    )
  except RuntimeError as error:
    if not low or "could not create a primitive" not in str(error):
      raise
    raise Unsupported("PyTorch has no bfloat16 LSTM for this CPU") from None

  def run():
    loss = loss_and_gradient()
    optimizer.step()
    return loss.item()

  return Peer(run)


def products_alone(problem: Problem) -> Peer:
  """Return the peer that has only our training step's matrix products.

  The recurrent products of forward and backward run time step by time step in a
  scan; each other product is computed once for the whole sequence. Outside of
  the scans, no product uses a result of another. Embedding lookups, gates,
  softmax and Adam are left out.

  Args:
    problem: of a model whose cell is `lstm`.
  """
  config, (seq_len, batch_size) = problem.config, problem.tokens.shape
  dtype = config.compute_dtype or jnp.float32
  size, hidden = config.embedding_size, config.hidden_size
  vocabulary_size, num_tokens = problem.vocabulary_size, seq_len * batch_size
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

      results.append(lax.scan(forward, a["h"], None, length=seq_len)[0])
      zeros = jnp.zeros((batch_size, hidden), jnp.float32)
      results.append(lax.scan(backward, zeros, a["das"])[0])
      results.append(weight_product(hs, a["das"]))
    return results

  program, seconds, size = compile_program(products, arguments)
  return Peer(partial(program, arguments), seconds, size)


def models() -> Makers:
  """Return the makers of all peers.

  Where JAX has several devices, each JAX library is also a second peer, whose
  batch is split over them.
  """
  alone: dict[str, tuple[Callable[..., Peer], str]] = {
    "lstm_jax": (lstm_jax, "jax"),
    "autodiff": (autodiff, "jax"),
    "lstm_jax layer": (
      jax_peer("lstm_jax layer", LAYERS["lstm_jax"][0]),
      "jax",
    ),
  }
  for name, (make_layer, package) in LAYERS.items():
    alone.setdefault(name, (jax_peer(name, make_layer), package))
  count = jax.device_count()
  shared = {
    f"{name}, {count} devices": (partial(make, devices=count), package)
    for name, (make, package) in alone.items()
    if count > 1
  }
  return (
    alone
    | shared
    | {
      "pytorch": (pytorch, "torch"),
      "products alone": (products_alone, "jax"),
    }
  )
