"""A run's folder: what a training run writes, and what is read back from it.

config.json     every flag, versions and device
metrics.jsonl   one JSON object a line: training and held-out losses
samples.txt     what the model wrote, as it learnt
loss.png        both losses over updates
result.json     the best loss, once the run is finished
evaluation.json what `experiments.evaluate` found, once it has run
explore.html    the page of `experiments.explore`, once it has run
profile/        the trace of --profile
report.html     the page of `experiments.report`, likewise
tensorboard/    the same course for TensorBoard, if tensorboardX is installed
checkpoints/    the last two and the best: parameters, and all to go on from
previous/       what --overwrite replaces, until this run has a checkpoint
lock            the process that writes here, while it does
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import numpy as jnp

from experiments.trainer.config import (
  TrainConfig,
  model_config,
  stored_vocabulary,
)
from lstm_jax.language import (
  LanguageModel,
  LanguageParams,
  Tokenizer,
  language_model,
)
from lstm_jax.training import (
  Checkpoint,
  CheckpointError,
  list_checkpoints,
  read_checkpoint,
  read_params,
)

CONFIG, METRICS, SAMPLES = "config.json", "metrics.jsonl", "samples.txt"
PICTURE, CHECKPOINTS = "loss.png", "checkpoints"
PROFILE = "profile"
EVALUATION, RESULT = "evaluation.json", "result.json"
PAGE, REPORT = "explore.html", "report.html"
TENSORBOARD = "tensorboard"
Config = TypeVar("Config", bound=TrainConfig)
EARLIER = {
  "tokenizer": "character",
  "min_count": 2,
  "tied": False,
}  # if not said
MODEL_FIELDS = (
  "tokenizer",
  "min_count",
  "cell",
  "embedding_size",
  "hidden_size",
  "num_layers",
  "tied",
  "init_std",
  "readout_std",
)


def read_config(directory: Path) -> dict[str, Any] | None:
  """Return what a run's config.json says, or None where it is not of a run."""
  try:
    record = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  if not isinstance(record, dict):
    return None
  return record if set(MODEL_FIELDS) <= set(EARLIER | record) else None


def read_record(directory: Path) -> dict[str, Any]:
  """Return what a run's config.json says.

  Raises:
    ValueError: the folder has none.
  """
  record = read_config(directory)
  if record is None:
    raise ValueError(
      f"there is no run in {directory}: it has no config.json of one"
    )
  return EARLIER | record


def configuration(record: dict[str, Any], default: Config) -> Config:
  """Return the configuration that a config.json says.

  What it does not say is as in the default: it is of before there was such a
  flag.

  Raises:
    ValueError: a value is not of its flag's kind, or out of its range.
  """
  found = {}
  for name, usual in dataclasses.asdict(default).items():
    value, kind = record.get(name, usual), type(usual)
    whole = kind is float and type(value) is int
    right = type(value) is kind or whole
    if kind is list:  # of numbers
      right = right and all(type(each) in (int, float) for each in value)
    if not right or value in (math.inf, -math.inf):
      raise ValueError(
        f"{CONFIG} must have a {kind.__name__} for {name}, got {value!r}"
      )
    found[name] = value
  return dataclasses.replace(default, **found)


def write_json(path: Path, record: dict[str, Any]) -> None:
  """Write a record in the place of what the file held: all of it or nothing.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  text = json.dumps(record, indent=2, allow_nan=False)
  part = path.with_name(path.name + ".part")
  with naming(path):
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
  """Name the file in an OSError: where the disk is full, it has no name."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from None


def check_parent(path: Path) -> None:
  """Raise ValueError where a file of that name cannot be, before it is made."""
  if not path.parent.is_dir():
    raise ValueError(f"{path} cannot be written: no such folder")


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
  """Add text to a file of the run, and leave it on the disk.

  Raises:
    OSError: it cannot be written; the error names the file.
  """
  with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
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
  held_out: float | None  # None for one that was saved between two looks


def load(directory: Path) -> Trained:
  """Return the best model of a run, or the last where none was looked at.

  Raises:
    ValueError: the folder holds no checkpoint, one that cannot be read, or
      one whose model is not that of the folder's config.json.
  """
  if not directory.is_dir():
    raise ValueError(f"there is no run in {directory}: no such folder")
  checkpoints = directory / CHECKPOINTS
  step, description = _best(checkpoints)
  try:
    described = EARLIER | description["model"]
    stored = description["vocabulary"]
    if isinstance(stored, str):  # as before there were words
      stored = {"symbols": stored}
    fields = {name: described[name] for name in MODEL_FIELDS}
    config = dataclasses.replace(TrainConfig(), **fields)
    vocabulary = stored_vocabulary(config.tokenizer, stored)
    held_out = description["held_out"]
    model = language_model(model_config(config, vocabulary.size))
  except (KeyError, TypeError, ValueError) as error:
    raise CheckpointError(
      f"the checkpoint in {checkpoints} describes no model: {error}"
    ) from None
  _compare(directory / CONFIG, fields)
  like = jax.eval_shape(model.init, jax.random.key(0))
  params = read_params(checkpoints, step, like)
  return Trained(
    model, jax.tree.map(jnp.asarray, params), vocabulary, step, held_out
  )


def _best(checkpoints: Path) -> Checkpoint:
  """Return the checkpoint that the newest readable one names as the best.

  A kill in the middle of a deletion leaves a folder that cannot be read: it is
  named on the standard error.
  """
  first = None
  for step in reversed(list_checkpoints(checkpoints)):
    try:
      newest = read_checkpoint(checkpoints, step)
    except CheckpointError as error:
      print(f"{error}: not used", file=sys.stderr)
      first = first or error
      continue
    best = newest.description.get("progress", {}).get("best")
    return read_checkpoint(checkpoints, best[1]) if best else newest
  raise first or CheckpointError(f"{checkpoints} holds no checkpoint")


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
