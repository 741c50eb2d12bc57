"""The setup of a training run, made of its configuration and corpus."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from experiments.trainer.config import TrainConfig
from experiments.trainer.data import (
  Corpus,
  naming_flags,
  read_corpus,
  split_ranges,
)
from experiments.trainer.distributed import batch_mesh
from experiments.trainer.environment import device_name
from experiments.trainer.format import counted, format_vocabulary
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import to_record
from lstm_jax.language import (
  Batches,
  LanguageModel,
  LanguageParams,
  Regularizers,
  language_model,
)
from lstm_jax.language.drawing import DrawingRules, checked_rules
from lstm_jax.training import (
  TrainState,
  TrainStep,
  gather,
  init_state,
  make_mesh_train_step,
  make_optimizer,
  make_train_step,
  place,
  state_shardings,
)
from lstm_jax.training.optimizer import learning_rate
from lstm_jax.training.sharding import MODEL  # the axis that splits weights

Tree = TypeVar("Tree")


class Keys(NamedTuple):
  """The random keys of a run."""

  init: jax.Array  # initial weights
  samples: jax.Array  # texts drawn at the evaluations
  noise: jax.Array  # of the regularizers


class TrainSetup(NamedTuple):
  """Everything that a run needs besides its train state."""

  config: TrainConfig
  corpus: Corpus
  num_steps: int  # training steps of the whole run
  epoch_lengths: list[tuple[int, int]]  # (epochs, training steps in each)
  model: LanguageModel
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule  # updates -> learning rate; skipped steps make none
  train_step: TrainStep
  # (weights, or None for random ones) -> the state before the first step; on a
  # mesh, it is created in the shards of its devices; random weights that the
  # mesh splits are drawn in the memory of the host and placed from there
  make_state: Callable[..., TrainState]
  state_like: TrainState  # its shapes and dtypes
  keys: Keys
  mesh: Mesh | None  # None for one device
  shardings: TrainState | None  # of the state on the mesh

  def epochs_made(self, step: int) -> float:
    """Return how many epochs `step` training steps make, with the fraction."""
    before = 0
    for epochs, length in self.epoch_lengths:
      whole, rest = divmod(step, length)
      if whole < epochs:
        return before + whole + rest / length
      before, step = before + epochs, step - epochs * length
    return float(before)

  def epochs(self) -> Iterator[Batches]:
    """Iterate over the epochs of the training split, each of them `Batches`."""
    config = self.config
    _, tokens, gap = self.corpus.train
    return config.batching.epochs(tokens, config.seed, gap)


def make_setup(config: TrainConfig, corpus: Corpus | None = None) -> TrainSetup:
  """Return the setup of a run.

  Args:
    config: of the run.
    corpus: that of the configuration, if it has been read already.

  Raises:
    ValueError: the corpus or the configuration is not usable, in general or on
      this device.
  """
  corpus = corpus or read_corpus(config.data)
  rules = DrawingRules(
    config.evaluation.temperature,
    suppress_tokens=corpus.tokenizer.unknown_tokens,
  )
  checked_rules(rules, corpus.tokenizer.size)  # raises for bad sample rules
  mesh = batch_mesh(config.job.mesh)
  dev_fraction, seq_len = config.data.dev_fraction, config.batching.seq_len
  if dev_fraction and len(corpus.val.tokens) <= seq_len:
    raise ValueError(
      f"--dev_fraction={dev_fraction} is too small: the development split must "
      f"be longer than a sequence, --seq_len={seq_len}, got "
      f"{len(corpus.val.tokens)} tokens"
    )
  with naming_flags(config.data, config.batching):
    _, tokens, gap = corpus.train
    lengths = config.batching.epoch_lengths(tokens, config.seed, gap)
  num_steps = sum(epochs * length for epochs, length in lengths)
  model = make_model(config, corpus.tokenizer.size, mesh)
  optimizer = make_optimizer(config.optimizer, num_steps)
  keys = make_keys(config.seed)

  def state_of(params: LanguageParams) -> TrainState:
    return init_state(
      model,
      optimizer,
      params,
      config.batching.batch_size,
      averaged=config.averaging.enabled,
    )

  params_like = init_shapes(model.init)
  state_like = jax.eval_shape(state_of, params_like)
  if config.model.implementation == "mosaic_gpu":
    _check_traceable(config, model, state_like)
  decay, shardings = config.averaging.ema_decay, None
  if mesh:
    shardings = state_shardings(mesh, state_like)
    state_of = jax.jit(state_of, out_shardings=shardings)
    train_step = make_mesh_train_step(
      mesh, model, optimizer, shardings=shardings, ema_decay=decay
    )
  else:
    train_step = make_train_step(model, optimizer, ema_decay=decay)

  def make_state(params: LanguageParams | None = None) -> TrainState:
    if params is None:
      host = host_device() if is_split(mesh) else None
      with jax.default_device(host) if host else nullcontext():
        params = model.init(keys.init)
    return state_of(place(params, shardings.params) if shardings else params)

  return TrainSetup(
    config,
    corpus,
    num_steps,
    lengths,
    model,
    optimizer,
    learning_rate(config.optimizer, num_steps),
    train_step,
    make_state,
    state_like,
    keys,
    mesh,
    shardings,
  )


def make_model(
  config: TrainConfig, vocabulary_size: int, mesh: Mesh | None
) -> LanguageModel:
  """Return the language model of a run."""
  regularizers = config.regularizers
  return language_model(
    config.model,
    vocabulary_size,
    regularizers=None if regularizers == Regularizers() else regularizers,
    groups=mesh.size if mesh else 1,  # the sequences of a device are a group
  )


def _check_traceable(
  config: TrainConfig, model: LanguageModel, state: TrainState
) -> None:
  """Raise ValueError where the kernels cannot run, or do not take the model.

  The kernels raise it when they are traced: here, before the run writes a file.
  A --seq_len of 1 needs no kernel, but evaluations do: 2 time steps are traced.
  """
  steps = max(config.batching.seq_len, 2)
  shape = steps, config.batching.batch_size
  batch = jax.ShapeDtypeStruct(shape, jnp.int32)
  jax.eval_shape(
    model.training_loss,
    state.params,
    state.carry,
    batch,
    batch,
    jax.random.key(0),
  )


def make_keys(seed: int) -> Keys:
  """Return the random keys of a seed."""
  return Keys(*jax.random.split(jax.random.key(seed), 3))


def is_split(mesh: Mesh | None) -> bool:
  """Return whether the devices of a mesh hold parts of the weights."""
  return mesh is not None and mesh.shape[MODEL] > 1


def host_device() -> jax.Device | None:
  """Return the device whose memory is the host's.

  None where `JAX_PLATFORMS` leaves the CPU out: then weights are drawn whole on
  an accelerator, the first of this process.
  """
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return None


def to_mesh(setup: TrainSetup, state: TrainState) -> TrainState:
  """Return a restored state laid out on the run's mesh, if it has one."""
  return place(state, setup.shardings) if setup.shardings else state


def to_one_device(setup: TrainSetup, tree: Tree) -> Tree:
  """Return arrays as evaluations and samples read them, on one device."""
  return gather(tree) if setup.shardings else tree


def heading(setup: TrainSetup) -> str:
  """Return the lines that a run prints about itself at its start."""
  config, corpus, model = setup.config, setup.corpus, setup.config.model
  cell = to_record(model)["cell"]
  count = sum(leaf.size for leaf in jax.tree.leaves(setup.state_like.params))
  return (
    f"model       {cell}, {model.num_layers} × "
    f"{counted(model.hidden_size, 'hidden unit')}, {count:,} parameters\n"
    f"corpus      {config.data.corpus}: {len(corpus.text):,} characters, "
    f"{format_vocabulary(corpus.tokenizer, corpus.val.tokens)}\n"
    f"training    {counted(config.batching.num_epochs, 'epoch')} of "
    f"{len(corpus.train.tokens):,} tokens, {counted(setup.num_steps, 'step')}\n"
    f"{_development_line(config, corpus)}"
    f"device      {device_name()}{format_mesh(setup.mesh)}"
  )


def _development_line(config: TrainConfig, corpus: Corpus) -> str:
  """Return what a heading says of a development split; "" without one."""
  if not config.data.dev_fraction:
    return ""
  first, last = split_ranges(config.data, corpus.text)["dev"]
  return (
    f"development characters {first:,} to {last:,} are left out of the "
    "training and validated on; the rest of the corpus is not evaluated\n"
  )


def format_mesh(mesh: Mesh | AbstractMesh | None) -> str:
  """Return what the line on devices says of a mesh."""
  if not mesh:
    return ""
  text = ": 1 device"
  if mesh.size > 1:
    text = f": {mesh.size} devices share each batch"
  if mesh.shape[MODEL] > 1:
    text += f", and {mesh.shape[MODEL]} the weights"
  count = jax.process_count()
  return text + (f", in {count} processes" if count > 1 else "")
