"""The program that tests/sequence/test_mesh.py starts in its own process.

  python -m tests.sequence.on_mesh OUT CELL ...

Compares gradients, and some outputs, on a mesh of two simulated devices with
those of one device. The mesh divides the batch, or in `divided_steps` the time
steps. Writes what it finds to the file OUT in JSON.
"""

import itertools
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lstm_jax import (
  Autodiff,
  Directions,
  Explicit,
  Step,
  lstm,
  unroll,
  unroll_both,
)
from lstm_jax.language import ModelConfig, cross_entropy, language_model
from lstm_jax.sequence import state_cotangents
from lstm_jax.training import find_collectives
from tests.contract import TABLE
from tests.draws import gaussian, worst

T, B, D, H = 5, 4, 3, 6
ROWS = PartitionSpec(None, "data")
REPLICATED = PartitionSpec()
ADJOINTS = (
  Explicit(),
  Explicit("recompute"),
  Explicit(chunk=2),
  Step(),
  Autodiff(),
)


def adjoints(cell):
  """Return all adjoints for the LSTM, and one for every other cell.

  One is enough there: the loss also calls the cell's step, as `Step` does.
  """
  return ADJOINTS if cell is lstm else ADJOINTS[:1]


def draw(cell, key):
  """Return params, and a batch: (xs, tokens, lengths, reset, cotangents)."""
  keys = jax.random.split(key, 4)
  params = jax.eval_shape(lambda: cell.init(key, D, H, jnp.float64))
  params = gaussian(key, cell, params)
  xs = jax.random.normal(keys[0], (T, B, D), jnp.float64)
  tokens = jax.random.randint(keys[1], (T, B), 0, D)
  lengths = jnp.array([[5, 0, 3, 4]])  # [1, B], which `ROWS` can divide
  reset = jax.random.bernoulli(keys[2], 0.3, (T, B))
  cotangents = jax.random.normal(keys[3], (T, B, H), jnp.float64)
  return params, (xs, tokens, lengths, reset, cotangents)


def sequence_loss(cell, adjoint):
  """Return a loss of an unroll of floats, one of tokens, and two steps.

  For a cell that takes no tokens, these are one-hot rows.
  """

  def loss(params, batch):
    xs, tokens, lengths, reset, cotangents = batch
    last, hs = unroll(
      cell,
      params,
      None,
      xs,
      lengths=lengths[0],
      reset=reset,
      adjoint=adjoint,
    )
    if not getattr(cell, "takes_tokens", False):
      tokens = jax.nn.one_hot(tokens, D, dtype=xs.dtype)
    _, others = unroll(cell, params, last, tokens, adjoint=adjoint)
    weights = cotangents[..., : hs.shape[-1]]
    return jnp.sum(weights * (hs + others)) + sum(
      jnp.sum(leaf**2)
      for before in (last, None)
      for leaf in cell.step(params, before, xs[0])
    )

  return loss


def model_loss(cell):
  """Return a language model's weights, and its loss: a sum over the batch."""
  config = ModelConfig(cell, embedding_size=D, hidden_size=H, dtype=jnp.float64)
  model = language_model(config, D)
  params = model.init(jax.random.key(3))

  def loss(params, batch):
    _, tokens, *_ = batch
    state = model.initial_state((tokens.shape[1],))
    nats, state = model.loss(params, state, tokens, tokens[::-1])
    _, logits = model.apply(params, state, tokens)
    total = nats * tokens.size
    return total + cross_entropy(logits, tokens).sum()

  return params, loss


def under_shard_map(loss, params, batch, mesh):
  def total(params, batch):
    return jax.lax.psum(loss(params, batch), "data")

  mapped = jax.shard_map(
    total, mesh=mesh, in_specs=(REPLICATED, ROWS), out_specs=REPLICATED
  )
  return jax.jit(jax.grad(mapped, (0, 1), allow_int=True))(params, batch)


def state_on_mesh(cell, params, xs, automatic, explicit):
  """Return errors: with only the state divided, and of `state_cotangents`.

  `automatic` and `explicit` are the mesh, with axes of these types.
  """
  key = jax.random.key(5)
  state = gaussian(key, cell, cell.initial_state(params, (B,)))
  own = PartitionSpec("data")
  placed = jax.device_put(state, NamedSharding(explicit, own))

  def loss(params, state):
    last, hs = unroll(cell, params, state, xs)
    return jnp.sum(hs**2) + jnp.sum(cell.step(params, last, xs[0]).h)

  gradients = jax.jit(jax.grad(loss, (0, 1)))
  errors = {
    "explicit axes, state alone": worst(
      floats(gradients(params, placed)), floats(gradients(params, state))
    )
  }

  def cotangents(params, state, xs):
    return tuple(
      state_cotangents(cell, params, first, xs, d_last=state)
      for first in (state, None)
    )

  run = jax.jit(cotangents)
  expected = run(params, state, xs)
  mapped = jax.shard_map(
    cotangents,
    mesh=automatic,
    in_specs=(REPLICATED, own, ROWS),
    out_specs=ROWS,
  )
  for name, found in (
    ("shard_map", jax.jit(mapped)(params, state, xs)),
    ("explicit axes", run(params, placed, xs)),
  ):
    errors[f"{name}, state cotangents"] = worst(found, expected)
  return errors


def divided_steps(params, xs, explicit):
  """Return the error where the mesh divides the time steps, not the rows."""
  xs, steps = xs[: T - 1], PartitionSpec("data")  # 4 steps: 2 on each device

  @jax.jit
  @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def gradients(params, xs):
    hs = unroll(lstm, params, None, xs)[1]
    return jnp.sum(hs**2), hs

  expected = gradients(params, xs)
  found = gradients(params, jax.device_put(xs, NamedSharding(explicit, steps)))
  (_, hs), (_, d_xs) = found
  for array in (hs, d_xs):
    assert array.sharding.spec[0] == "data", array.sharding
  return {"explicit axes, divided steps": worst(found, expected)}


def both_directions(params, batch, automatic, explicit):
  """Return errors of `unroll_both`, with any of its options divided as xs."""
  xs, _, lengths, reset, _ = batch
  # Rows 2 and 3 repeat the options of rows 0 and 1. So under `shard_map` both
  # devices have the same options, whether four rows are divided or two are
  # replicated.
  names = "lengths", "reset", "mask"
  halves = lengths[0, :2], reset[:, :2], xs[:, :2, 0] > -1
  flags = [jnp.concatenate([half, half], -1) for half in halves]
  rows = PartitionSpec("data"), ROWS, ROWS

  @jax.jit
  def run(xs, *flags):
    options = dict(zip(names, flags, strict=True))
    pair = Directions(params, params)
    return unroll_both(lstm, pair, None, xs, **options)[1]

  expected, errors = run(xs, *flags), {}
  for choice in itertools.product((False, True), repeat=3):
    chosen = f"both directions, {list(itertools.compress(names, choice))}"
    each = zip(choice, rows, flags, halves, strict=True)
    specs, arrays = zip(
      *((row, f) if c else (REPLICATED, half) for c, row, f, half in each),
      strict=True,
    )
    mapped = jax.shard_map(
      run, mesh=automatic, in_specs=(ROWS, *specs), out_specs=ROWS
    )
    errors[f"shard_map, {chosen}"] = worst(mapped(xs, *arrays), expected)
    placed = jax.device_put(
      [xs, *flags], [NamedSharding(explicit, spec) for spec in (ROWS, *specs)]
    )
    with jax.set_mesh(explicit):
      errors[f"explicit axes, {chosen}"] = worst(run(*placed), expected)
  return errors


def floats(tree):
  """Return the float64 arrays: gradients of integers have the dtype float0."""
  return [x for x in jax.tree.leaves(tree) if x.dtype == jnp.float64]


def compiled_gradient(loss, *args):
  gradient = jax.jit(jax.grad(loss, (0, 1), allow_int=True))
  return gradient.lower(*args).compile()


def gradient(loss, *args):
  return compiled_gradient(loss, *args)(*args)


def compare(cell, found):
  """Write a cell's errors into `found`; return shardings and collectives."""
  automatic, explicit = (
    jax.make_mesh((2,), ("data",), axis_types=(kind,))
    for kind in (AxisType.Auto, AxisType.Explicit)
  )
  params, batch = draw(cell, jax.random.key(0))
  placed = jax.device_put(batch, NamedSharding(explicit, ROWS))
  one = floats(gradient(sequence_loss(cell, Autodiff()), params, batch))
  looped = None
  for adjoint in adjoints(cell):
    loss = sequence_loss(cell, adjoint)
    mapped = floats(under_shard_map(loss, params, batch, automatic))
    found[f"shard_map, {adjoint}"] = worst(mapped, one)
    program = compiled_gradient(loss, params, placed)
    on_explicit = floats(program(params, placed))
    found[f"explicit axes, {adjoint}"] = worst(on_explicit, one)
    if adjoint == Explicit():
      collectives = find_collectives(program.as_text())
      looped = sum(collective.looped for collective in collectives)
  if cell is lstm:  # one cell is enough: a model only calls its functions
    weights, loss = model_loss(cell)
    one = floats(gradient(loss, weights, batch))
    mapped = floats(under_shard_map(loss, weights, batch, automatic))
    found["shard_map, language model"] = worst(mapped, one)
    on_explicit = floats(gradient(loss, weights, placed))
    found["explicit axes, language model"] = worst(on_explicit, one)
    found |= both_directions(params, batch, automatic, explicit)
    found |= divided_steps(params, batch[0], explicit)
  found |= state_on_mesh(cell, params, batch[0], automatic, explicit)

  @jax.jit
  def states(params, xs):
    last, hs = unroll(cell, params, None, xs)
    return last.h, hs, state_cotangents(cell, params, None, xs, last).h

  arrays = states(params, placed[0])
  specs = [jax.typeof(x).sharding.spec for x in arrays]
  return {"specs": list(map(str, specs)), "collectives in loops": looped}


def main():
  out, *names = sys.argv[1:]
  jax.config.update("jax_enable_x64", True)
  result = {}
  for name in names:
    errors = {}
    result[name] = compare(TABLE[name].cell, errors) | {"errors": errors}
  with open(out, "w") as file:
    json.dump(result, file)


if __name__ == "__main__":
  main()
