"""A run's folder: what a training run writes, and what is read back from it.

config.json     every flag, versions and device
metrics.jsonl   one JSON object a line: training and held-out losses
samples.txt     what the model wrote, as it learnt
loss.png        both losses over updates
evaluation.json what `experiments.evaluate` found, once it has run
checkpoints/    the parameters of the best held-out loss
previous/       what --overwrite replaces, until this run has a checkpoint
"""

import dataclasses
import json
import shutil
from datetime import datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from experiments import distributed
from experiments.config import TrainConfig, model_config, stored_vocabulary
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  Tokenizer,
  language_model,
)
from lstm_jax.training import CheckpointError, read_checkpoint, read_params

CONFIG, METRICS, SAMPLES = "config.json", "metrics.jsonl", "samples.txt"
PICTURE, CHECKPOINTS = "loss.png", "checkpoints"
EVALUATION = "evaluation.json"
PREVIOUS = "previous"
EARLIER = {"tokens": "character", "min_count": 2, "tied": False}  # if not said
MODEL_FIELDS = (
  "tokens",
  "min_count",
  "cell",
  "embedding_size",
  "hidden_size",
  "num_layers",
  "tied",
  "init_std",
  "readout_std",
)


def create(config: TrainConfig) -> Path:
  """Make a run's folder and write its configuration.

  Raises:
    ValueError: the folder holds a run, and the configuration does not say
      that it may be overwritten; or it holds something else of that name.
  """
  folder = Path(config.run) if config.run else _new_folder()
  names = CONFIG, METRICS, SAMPLES, PICTURE, EVALUATION, CHECKPOINTS
  present = [folder / name for name in names if (folder / name).exists()]
  if present and not _is_run(folder):
    raise ValueError(
      f"{folder} holds {present[0].name}, which is not of a run: "
      "choose another --run"
    )
  if present and not config.overwrite:
    raise ValueError(
      f"{folder} already holds a run; --overwrite replaces it, "
      "another --run keeps it"
    )
  if present:
    _set_aside(folder, present)
  folder.mkdir(parents=True, exist_ok=True)
  now = datetime.now().astimezone().isoformat(timespec="seconds")
  record = dataclasses.asdict(config) | origin() | {"started": now}
  text = json.dumps(record, indent=2, allow_nan=False)
  (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
  return folder


def _is_run(folder: Path) -> bool:
  """Return whether the folder's config.json is one that `create` wrote."""
  try:
    record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return False
  if not isinstance(record, dict):
    return False
  return set(MODEL_FIELDS) <= set(EARLIER | record)


def _set_aside(folder: Path, present: list[Path]) -> None:
  """Move a run into `previous`, until the run that replaces it has succeeded.

  A run that never reached a checkpoint does not take the place of one that did.
  """
  previous = folder / PREVIOUS
  steps = (folder / CHECKPOINTS).glob("*")
  if previous.exists() and not any(path.name.isdigit() for path in steps):
    for path in present:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
    return
  shutil.rmtree(previous, ignore_errors=True)
  previous.mkdir()
  for path in present:
    path.rename(previous / path.name)


def forget_previous(folder: Path) -> None:
  """Delete the run that `create` set aside, if any."""
  shutil.rmtree(folder / PREVIOUS, ignore_errors=True)


def _new_folder() -> Path:
  """Make a folder of its own under runs/, named after the time."""
  stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
  for number in count(1):
    folder = Path("runs") / (stamp if number == 1 else f"{stamp}-{number}")
    try:
      folder.mkdir(parents=True)
    except FileExistsError:
      continue
    return folder
  raise AssertionError("count has no end")


def device_name() -> str:
  """Return what the run computes on."""
  device = jax.devices()[0]
  return f"{device.platform}, {device.device_kind}"


def origin() -> dict[str, Any]:
  """Return the versions and the device that figures come from."""
  packages = "jax", "jaxlib", "optax", "flax", "lstm-jax"
  versions = {name: version(name) for name in packages}
  return {"versions": versions, "device": device_name()}


def append(path: Path, text: str) -> None:
  """Add text to a file of the run, and leave it on the disk."""
  if not distributed.is_first():
    return
  with path.open("a", encoding="utf-8", newline="\n") as file:
    file.write(text)


def describe(config: TrainConfig, vocabulary: Tokenizer) -> dict[str, Any]:
  """Return what a checkpoint must say for its model to be made again."""
  fields = {name: getattr(config, name) for name in MODEL_FIELDS}
  return {"model": fields, "vocabulary": vocabulary._asdict()}


def default_prompt(vocabulary: Tokenizer) -> np.ndarray:
  """Return the token of a line end, or the first where there is none, [1]."""
  symbols = vocabulary.symbols
  return np.array([symbols.index("\n") if "\n" in symbols else 0], np.int32)


class Trained(NamedTuple):
  """A model read back from a run's folder."""

  model: LanguageModel
  params: LanguageParams
  vocabulary: Tokenizer
  step: int
  held_out: float


def load(folder: Path) -> Trained:
  """Return the best model of a run.

  Raises:
    ValueError: the folder holds no checkpoint, one that cannot be read, or
      one whose model is not that of the folder's config.json.
  """
  if not folder.is_dir():
    raise ValueError(f"there is no run in {folder}: no such folder")
  checkpoints = folder / CHECKPOINTS
  step, description = read_checkpoint(checkpoints)
  try:
    described = EARLIER | description["model"]
    stored = description["vocabulary"]
    if isinstance(stored, str):  # as before there were words
      stored = {"symbols": stored}
    fields = {name: described[name] for name in MODEL_FIELDS}
    config = dataclasses.replace(TrainConfig(), **fields)
    vocabulary = stored_vocabulary(config.tokens, stored)
    held_out = float(description["held_out"])
    model = language_model(model_config(config, vocabulary.size))
  except (KeyError, TypeError, ValueError) as error:
    raise CheckpointError(
      f"the checkpoint in {checkpoints} describes no model: {error}"
    ) from None
  _compare(folder / CONFIG, fields)
  like = jax.eval_shape(model.init, jax.random.key(0))
  params = read_params(checkpoints, step, like)
  return Trained(
    model, jax.tree.map(jnp.asarray, params), vocabulary, step, held_out
  )


def _compare(path: Path, fields: dict[str, Any]) -> None:
  """Raise ValueError where config.json is of another model."""
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from None
  for name, value in fields.items():
    other = None
    if isinstance(record, dict):
      other = (EARLIER | record).get(name)
    if other != value:
      raise ValueError(
        f"the checkpoint is of another configuration than {path}: "
        f"{name} is {value!r} in one and {other!r} in the other"
      )
