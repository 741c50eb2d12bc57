import contextlib
import io
import json
import resource
import shutil
import signal
from pathlib import Path

import jax
import pytest
from rich.console import Console

from experiments import explore, train
from experiments.comparison.cells import CompareConfig
from experiments.trainer import logger
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace
from lstm_jax import rnn
from tests.experiments.pages import browser, explored

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely.\n"
# In the runs of `make_config`, the last batch of this text is as long as the
# others, so that only one training step is compiled.
VERSES = f"{VERSE * 20}Thou art more\n"
# Options of a run whose loss is not finite after a training step.
DIVERGES = {
  "optimizer": "sgd",
  "learning_rate": 1e38,
  "warmup_steps": 0,
  "clip_norm": 0.0,
}


@pytest.fixture(autouse=True)
def standard_promotion():
  """Allow optax's decay**count, a float to the power of an integer."""
  with jax.numpy_dtype_promotion("standard"):
    yield


@pytest.fixture
def console():
  return Console(file=io.StringIO(), width=80)


def make_config(directory):
  """Return the config of a run of 47 training steps, and write its corpus.

  It trains on the first 1,128 of 1,254 characters, in batches of 3 × 8, writes
  a row of metrics every 10 steps (LOG_EVERY) and after the last, and evaluates
  after steps 10 and 30 (EARLY_STEPS), 20, 40 (eval_every) and 47.

  Tests use these sizes unless they need others: a program is compiled once for
  all runs of equal sizes.
  """
  corpus = directory / "verse.txt"
  corpus.write_text(VERSES, encoding="utf-8")
  return replace(
    TrainConfig(),
    corpus=str(corpus),
    run=str(directory / "run"),
    embedding_size=4,
    hidden_size=12,
    batch_size=3,
    seq_len=8,
    num_epochs=1,
    warmup_steps=5,
    eval_every=20,
    sample_length=30,
  )


@pytest.fixture(autouse=True)
def no_loss_picture(monkeypatch):
  """Have runs draw no loss.png, which is slow."""
  monkeypatch.setattr(logger, "draw_losses", lambda *given: None)


@contextlib.contextmanager
def as_in_a_test():
  """Let a session fixture train without a picture, and with any dtypes.

  In a test, `no_loss_picture` and `standard_promotion` do so; they are made
  after the fixtures of a session.
  """
  with (
    jax.numpy_dtype_promotion("standard"),
    pytest.MonkeyPatch.context() as monkeypatch,
  ):
    monkeypatch.setattr(logger, "draw_losses", lambda *given: None)
    yield


@pytest.fixture
def config(tmp_path):
  return make_config(tmp_path)


@pytest.fixture(scope="session")
def finished_config(tmp_path_factory):
  """Return the config of a finished run; tests read the run, or copy it.

  Unlike other runs of this process, it has its picture, loss.png.
  """
  config = make_config(tmp_path_factory.mktemp("finished"))
  with jax.numpy_dtype_promotion("standard"):
    train.run(config, Console(file=io.StringIO(), width=80))
  return config


@pytest.fixture
def finished(finished_config, config):
  """Return the run directory of `config`, which holds a finished run."""
  return copy_run(finished_config, config)


def copy_run(source, config):
  """Copy the run of config `source` to the run directory of `config`.

  The two configs may differ only in their run directory and corpus file.
  Returns the run directory of `config`.
  """
  directory = Path(config.job.run)
  shutil.copytree(source.job.run, directory)
  edit_config(directory, run=config.job.run, corpus=config.data.corpus)
  return directory


def edit_config(directory, **changes):
  """Change entries of the config.json of a run, such as its flags."""
  path = directory / "config.json"
  record = json.loads(path.read_text(encoding="utf-8")) | changes
  path.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def word_config(config):
  """Return `config` for a word model.

  The last two lines of its corpus have words that occur only there.
  """
  with open(config.data.corpus, "a", encoding="utf-8") as file:
    file.write("Thou art more temperate:\n  Rough winds do shake thee.\n")
  return replace(config, tokenizer="word", learning_rate=0.03)


@pytest.fixture
def comparison(tmp_path):
  """Return the config of a comparison of the smallest sizes that tests need."""
  corpus = tmp_path / "verse.txt"
  corpus.write_text(VERSE * 50, encoding="utf-8")
  return replace(
    CompareConfig(),
    corpus=str(corpus),
    hidden_size=6,
    embedding_size=4,
    num_seeds=2,
    batch_size=3,
    seq_len=8,
    num_steps=12,
    learning_rate=(0.02,),
    trial_steps=20,
    weight_decay=0.0,
    timing_rounds=2,
    context=16,
    gradient_steps=10,
    delay=(1, 3),
    recall_hidden_size=4,
    recall_steps=10,
    recall_learning_rate=(0.01,),
  )


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory):
  """Return two finished runs, {name: configuration}; tests only read them.

  They are an LSTM of two layers and a plain RNN. Their text contains markup.
  """
  base = tmp_path_factory.mktemp("runs")
  corpus = base / "verse.txt"
  corpus.write_text(explored.VERSE * 12, encoding="utf-8")
  shared = replace(
    TrainConfig(),
    corpus=str(corpus),
    embedding_size=4,
    hidden_size=12,
    batch_size=3,
    seq_len=8,
    num_epochs=1,
    warmup_steps=5,
    eval_every=20,
    sample_length=60,
    quiet=True,
  )
  changes = {
    "lstm": {"num_layers": 2},
    "rnn": {"cell": rnn, "learning_rate": 0.01, "eval_every": 30},
  }
  runs = {}
  with as_in_a_test():
    for name, each in changes.items():
      runs[name] = replace(shared, run=str(base / name), **each)
      train.run(runs[name], Console(file=io.StringIO(), width=80))
  return runs


@pytest.fixture(scope="session")
def explored_run(tmp_path_factory):
  """Return the run directory of an untrained LSTM of two layers.

  Its corpus contains markup.
  """
  base = tmp_path_factory.mktemp("explore")
  corpus = base / "verse.txt"
  corpus.write_text(explored.VERSE * 20, encoding="utf-8")
  config = replace(
    TrainConfig(),
    corpus=str(corpus),
    val_fraction=0.3,
    run=str(base / "run"),
    embedding_size=4,
    hidden_size=12,
    num_layers=2,
  )
  return explored.write_run(config)


@pytest.fixture
def words_page(word_config, tmp_path, console):
  """Return the page of a word model to which "temperate" is unknown.

  The model's corpus replaces that of `word_config`.
  """
  corpus, text = Path(word_config.data.corpus), tmp_path / "text.txt"
  corpus.write_text("Thou art\n  more lovely, more\nlovely.\n" * 20)
  text.write_text("\n".join(explored.LINES * 3), encoding="utf-8")
  directory = explored.write_run(word_config)
  config = explore.ExploreConfig(str(directory), str(text))
  return explore.run(config, console).path


@pytest.fixture(scope="session")
def explored_page(explored_run):
  """Return the page of `explored_run`."""
  config = explore.ExploreConfig(str(explored_run), length=explored.LENGTH)
  return explore.run(config, Console(file=io.StringIO())).path


@pytest.fixture(scope="session")
def started_chromium():
  """Yield a browser, started once: a start takes longer than most pages."""
  with browser.chromium() as found:
    yield found


@pytest.fixture(scope="module")
def chromium(started_chromium):
  """Yield the browser, which is reset after the tests of each module."""
  yield started_chromium
  started_chromium.reset()


@pytest.fixture
def no_room():
  """Return a maker of contexts in which no byte can be written to a file."""

  @contextlib.contextmanager
  def full():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  return full


@pytest.fixture
def interruptible():
  """Have SIGINT raise KeyboardInterrupt, as in a terminal.

  A background job, as the tests may be, ignores SIGINT otherwise.
  """
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, previous)
