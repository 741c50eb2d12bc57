import dataclasses
import io

import jax
import pytest
from rich.console import Console

from experiments.config import TrainConfig

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely.\n"


@pytest.fixture(autouse=True)
def standard_promotion():
  """optax multiplies floats by integer counts, which strict mode refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield


@pytest.fixture
def console():
  return Console(file=io.StringIO(), width=80)


@pytest.fixture
def config(tmp_path):
  """A run of a second or two."""
  corpus = tmp_path / "verse.txt"
  corpus.write_text(VERSE * 20, encoding="utf-8")
  return TrainConfig(
    corpus=str(corpus),
    run=str(tmp_path / "run"),
    embedding_size=4,
    hidden_size=12,
    num_streams=3,
    num_steps=8,
    num_epochs=1,
    warmup=5,
    eval_every=20,
    sample_length=30,
  )


@pytest.fixture
def word_config(config):
  """The same, word by word, with words at its end that occur once."""
  with open(config.corpus, "a", encoding="utf-8") as file:
    file.write("Thou art more temperate:\n  Rough winds do shake thee.\n")
  return dataclasses.replace(config, tokens="word", learning_rate=0.03)
