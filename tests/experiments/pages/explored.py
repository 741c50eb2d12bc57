"""Untrained runs for the tests, and the data that a page's script unpacks."""

import base64
import functools
import gzip
import json
import re
from pathlib import Path

import jax
import numpy as np

from experiments.pages.packed_model import dequantize_params, quantize_params
from experiments.trainer import run_dir
from experiments.trainer.checkpoint import describe
from experiments.trainer.config import CELLS, TrainConfig
from experiments.trainer.data import read_corpus
from experiments.trainer.files import write_json
from experiments.trainer.records import replace, to_record
from lstm_jax.language import language_model, read_text, split
from lstm_jax.training import CheckpointWriter

HOSTILE = "<script>document.title = 'ran'</script>"
VERSE = f"""First Lord:
Shall I compare thee to a 'summer's day?'
{HOSTILE} & more

Thou art more lovely -->
"""
# Lines of verse with an indentation; "temperate" is unknown to `words_page`.
LINES = "Thou art more lovely, more", "  temperate Thou art", "more"
LENGTH = 400  # characters of text in the page of the fixture explored_page
# The flags of each model. The embedding of a tied one is as large as its h.
MODELS = {name: {"cell": cell, "num_layers": 2} for name, cell in CELLS.items()}
MODELS["lstm"] |= {"embedding_size": 5}
MODELS["gru"] |= {"tied": True, "embedding_size": 11}
MODELS["words"] = {"tokenizer": "word"}


def write_run(config):
  """Write the run directory of an untrained model, and return it.

  Its biases and gains are drawn at random, too.
  """
  corpus = read_corpus(config.data)
  model = language_model(config.model, corpus.tokenizer.size)
  directory = Path(config.job.run)
  directory.mkdir()
  record = to_record(config) | {"corpus_sha256": corpus.sha256}
  write_json(directory / run_dir.CONFIG, record)
  writer = CheckpointWriter(directory / run_dir.CHECKPOINTS)
  description = describe(config, corpus.tokenizer) | {"val_loss": 4.0}
  params = _spread(model.init(jax.random.key(config.seed)))
  writer.save(0, params, description)
  writer.close()
  return directory


def untrained_runs(directory):
  """Return a function: name of MODELS -> the run of that model."""
  corpus = directory / "verse.txt"
  corpus.write_text(VERSE * 40, encoding="utf-8")
  config = replace(
    TrainConfig(), corpus=str(corpus), val_fraction=0.3, hidden_size=11
  )

  @functools.cache
  def make(name):
    # Session fixtures run before the fixture `standard_promotion`.
    with jax.numpy_dtype_promotion("standard"):
      changes = MODELS[name] | {"run": str(directory / name)}
      return write_run(replace(config, **changes))

  return make


def exact_params(trained):
  """Return the 8-bit weights of a run's page, dequantized in float64.

  In float64 the product of a level (int8) and the scale of its row is exact.
  """
  quantized = jax.tree.map(
    lambda leaf: leaf.astype(np.float64) if leaf.dtype != np.int8 else leaf,
    quantize_params(trained.params),
  )
  return dequantize_params(quantized)


def _spread(params):
  """Add noise to all vectors; gains and biases begin the same in all units."""
  random = np.random.default_rng(0)

  def add(leaf):
    if leaf.ndim > 1:
      return leaf
    return leaf + 0.3 * random.standard_normal(leaf.shape).astype(leaf.dtype)

  return jax.tree.map(add, params)


class PageData:
  """The data of a page, unpacked as its own script does."""

  def __init__(self, path):
    text = path.read_text(encoding="utf-8")
    scripts = re.findall(r'<script type="text/plain" id="(\w+)">(.*)</', text)
    self.scripts = {name: base64.b64decode(data) for name, data in scripts}
    self.header = json.loads(gzip.decompress(self.scripts["header"]))

  @property
  def text(self):
    """Return the text that a page of `explore` shows."""
    return "".join(self.header["pieces"])

  def array(self, blob, dtype=np.uint8):
    """Return the array of the blob with this number."""
    raw = gzip.decompress(self.scripts[f"blob{blob}"])
    return np.frombuffer(raw, dtype)

  def scale(self, layer, name):
    """Return the scale of a signal, for each unit, [H].

    It is the unit's largest magnitude or, for a gate, which is unsigned, 1.
    """
    signals = self.header["layers"][layer]["signals"]
    return np.array(next(s["scale"] for s in signals if s["name"] == name))

  def signal(self, layer, name):
    """Return (values [H, N tokens], their largest rounding error [H, 1])."""
    signal = next(
      s for s in self.header["layers"][layer]["signals"] if s["name"] == name
    )
    scale = np.array(signal["scale"])[:, None]
    levels = self.array(signal["blob"]).reshape(len(scale), -1).astype(float)
    if signal["signed"]:
      return (levels - 128) / 127 * scale, 0.5 / 127 * scale
    return levels / 255, np.full_like(scale, 0.5 / 255)

  def paths(self, layer):
    """Return {field of the state: norms [N, W]}, W the header's window.

    They are norms of the gradient of log p(next token), at each of N tokens,
    with respect to the state k = 0 … W − 1 time steps before.
    """
    paths = {}
    for path in self.header["layers"][layer]["paths"]:
      levels = self.array(path["blob"]).reshape(-1, self.header["window"])
      span = path["high"] - path["low"]
      norms = 10 ** (path["low"] + (levels - 1.0) / 254 * span)
      paths[path["name"]] = np.where(levels == 0, 0, norms)
    return paths


def val_text(directory):
  """Return the first LENGTH characters of a run's validation split.

  For the fixture `explored_run`, they are what `explored_page` shows.
  """
  record = json.loads((directory / run_dir.CONFIG).read_text())
  text = read_text(record["corpus"])
  return split(text, record["val_fraction"])[1][:LENGTH]
