"""Records of ablations, written and read."""

import json
from pathlib import Path

from experiments import ablate
from experiments.comparison.ablations import Ablations
from experiments.trainer.corpus import read_corpus_text, text_sha256

# The numbers of a row of the record; a row also names its change. "cold" and
# "stateful" are losses, with the state reset for each window and carried on.
ROW = {"parameters": 1, "cold": 2.0, "stateful": 1.5, "seconds": 3.0}


def record_path(config):
  return Path(config.job.run) / ablate.RECORD


def read_record(config):
  return json.loads(record_path(config).read_text(encoding="utf-8"))


def write_rows(config, *changes):
  """Write a record that has a row for each change, without training."""
  rows = [{"change": name} | ROW for name in changes]
  sha256 = text_sha256(read_corpus_text(config.data.corpus))
  Path(config.job.run).mkdir()
  Ablations(ablate._recipe(config), sha256, rows).write(record_path(config))
