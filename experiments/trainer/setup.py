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
from lstm_jax.language import BatchingConfig, LanguageModel, language_model
from lstm_jax.training import (
  TrainState,
  TrainStep,
  init_state,
  make_mesh_train_step,
  make_optimizer,
  make_train_step,
  state_shardings,
)


class TrainSetup(NamedTuple):
  """A run before its first update."""

  corpus: Corpus
  reading: BatchingConfig
  num_steps: int
  model: LanguageModel
  update: TrainStep
  state: TrainState  # before the first update, on one device
  key_samples: jax.Array
  mesh: Mesh | None  # None for one device
  shardings: TrainState | None  # of the state, on the mesh


def make(config: TrainConfig) -> TrainSetup:
  """Return the parts of a run.

  Raises:
    ValueError: the corpus or the configuration is not usable.
  """
  corpus = read_corpus(config)
  read = reading(config)
  num_steps = read.num_steps(corpus.training.tokens)
  sizes = model_config(config, corpus.vocabulary.size)
  mesh, noise = mesh_of(config), regularizers(config)
  groups = mesh.size if mesh else 1
  model = language_model(sizes, regularizers=noise, groups=groups)
  rule = make_optimizer(optimizer_config(config), num_steps)
  key_init, key_samples, key_noise = keys_of(config.seed)
  params = jax.block_until_ready(model.init(key_init))  # or out of memory
  averaged = config.ema_decay > 0
  state = init_state(model, rule, params, config.batch_size, averaged=averaged)
  shardings, decay = None, config.ema_decay
  if mesh:
    shardings = state_shardings(mesh, rule, state)
    update = make_mesh_train_step(
      mesh, model, rule, key_noise, shardings=shardings, decay=decay
    )
  else:
    update = make_train_step(model, rule, key_noise, decay=decay)
  return TrainSetup(
    corpus,
    read,
    num_steps,
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


def heading(config: TrainConfig, parts: TrainSetup) -> str:
  """Return what a run says of itself at its beginning."""
  corpus = parts.corpus
  count = sum(leaf.size for leaf in jax.tree.leaves(parts.state.params))
  return (
    f"model       {config.cell}, {config.num_layers} × {config.hidden_size} "
    f"hidden units, {count:,} parameters\n"
    f"corpus      {config.corpus}: {len(corpus.text):,} characters, "
    f"{tokens_told(corpus.vocabulary, corpus.held_out.tokens)}\n"
    f"training    {config.num_epochs} epochs of "
    f"{len(corpus.training.tokens):,} tokens, {parts.num_steps:,} updates\n"
    f"device      {run_dir.device_name()}{mesh_told(parts.mesh)}"
  )
