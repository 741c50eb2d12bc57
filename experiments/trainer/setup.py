"""What a configuration and its corpus make: all that a run is made of."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from experiments.trainer import run_dir
from experiments.trainer.config import (
  TrainConfig,
  model_config,
  optimizer_config,
  reading,
  regularizers,
)
from experiments.trainer.data import Corpus, read_corpus
from experiments.trainer.format import tokens_told
from experiments.trainer.placement import mesh_of, mesh_told
from lstm_jax.language import LanguageModel, Reading, language_model
from lstm_jax.training import (
  TrainState,
  Update,
  init_state,
  make_mesh_update,
  make_optimizer,
  make_update,
  state_shardings,
)


class Parts(NamedTuple):
  """A run before its first update."""

  corpus: Corpus
  reading: Reading
  num_updates: int
  model: LanguageModel
  update: Update
  state: TrainState  # before the first update, on one device
  key_samples: jax.Array
  mesh: Mesh | None  # None for one device
  shardings: TrainState | None  # of the state, on the mesh


def make(config: TrainConfig) -> Parts:
  """Return the parts of a run.

  Raises:
    ValueError: the corpus or the configuration is not usable.
  """
  corpus = read_corpus(config)
  read = reading(config)
  num_updates = read.num_updates(corpus.training.tokens)
  sizes = model_config(config, corpus.vocabulary.size)
  mesh, noise = mesh_of(config), regularizers(config)
  groups = mesh.size if mesh else 1
  model = language_model(sizes, regularizers=noise, groups=groups)
  rule = make_optimizer(optimizer_config(config), num_updates)
  key_init, key_samples, key_noise = keys_of(config.seed)
  params = jax.block_until_ready(model.init(key_init))  # or out of memory
  averaged = config.average > 0
  state = init_state(model, rule, params, config.num_streams, averaged=averaged)
  shardings, decay = None, config.average
  if mesh:
    shardings = state_shardings(mesh, rule, state)
    update = make_mesh_update(
      mesh, model, rule, key_noise, shardings=shardings, decay=decay
    )
  else:
    update = make_update(model, rule, key_noise, decay=decay)
  return Parts(
    corpus,
    read,
    num_updates,
    model,
    update,
    state,
    key_samples,
    mesh,
    shardings,
  )


def keys_of(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return the keys of a run: initial weights, samples, noise."""
  key_init, key_samples = jax.random.split(jax.random.key(seed))
  return key_init, key_samples, jax.random.fold_in(key_init, 1)


def heading(config: TrainConfig, parts: Parts) -> str:
  """Return what a run says of itself at its beginning."""
  corpus = parts.corpus
  count = sum(leaf.size for leaf in jax.tree.leaves(parts.state.params))
  return (
    f"model       {config.cell}, {config.num_layers} × {config.hidden_size} "
    f"hidden units, {count:,} parameters\n"
    f"corpus      {config.corpus}: {len(corpus.text):,} characters, "
    f"{tokens_told(corpus.vocabulary, corpus.held_out.tokens)}\n"
    f"training    {config.num_epochs} epochs of "
    f"{len(corpus.training.tokens):,} tokens, {parts.num_updates:,} updates\n"
    f"device      {run_dir.device_name()}{mesh_told(parts.mesh)}"
  )
