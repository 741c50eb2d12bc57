"""--init_from starts a run from the weights of another."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer.distillation import weights_sha256
from experiments.trainer.history import read_run_history
from experiments.trainer.records import replace
from experiments.trainer.run_dir import OpenedRun
from experiments.trainer.setup import make_setup
from experiments.trainer.start import initial_state
from experiments.trainer.trained import check_vocabulary, load, read_pretrained
from lstm_jax import gru
from lstm_jax.language import CharTokenizer
from tests.draws import worst
from tests.experiments.conftest import VERSE
from tests.experiments.trainer.resuming import read_rows, signal_at


@pytest.fixture
def config(config, finished):
  """A run from the weights of `finished`, in another directory."""
  return replace(
    config, init_from=str(finished), run=f"{config.job.run}-next", seed=1
  )


def test_a_run_starts_from_the_weights_with_a_new_optimizer(config, finished):
  setup = make_setup(config)
  trained = load(finished)
  state = setup.make_state(read_pretrained(setup).params)
  assert worst(state.params, trained.params) == 0
  random = setup.make_state()
  assert worst(state.params, random.params) > 0.1
  assert int(state.step) == 0
  same = jax.tree.map(np.array_equal, state.opt_state, random.opt_state)
  assert all(jax.tree.leaves(same))
  # A run that is resumed, here the source itself, has weights of its own.
  again = replace(config, run=str(finished))
  assert read_pretrained(make_setup(again)) is None
  replaced = read_pretrained(make_setup(replace(again, overwrite=True)))
  assert worst(replaced.params, trained.params) == 0


@pytest.mark.parametrize(
  ("loss", "shown"),
  [(None, ""), (2.5, ", validation loss 2.5000 nats per character")],
)
def test_a_run_may_start_from_weights_that_were_not_evaluated(
  loss, shown, config, finished, console
):
  pretrained = load(finished)._replace(val_loss=loss, step=5)
  titles = []
  logger = SimpleNamespace(
    resume=lambda restored: None,
    sample_during_training=lambda title, params: titles.append(title),
  )
  opened, setup = OpenedRun(finished, resuming=False), make_setup(config)
  state = initial_state(setup, logger, console, opened, pretrained)
  assert worst(state.params, pretrained.params) == 0
  line = f"those of {finished}, step 5{shown}"
  assert titles == [f"step 0, epoch 0.0: {line}"]
  assert console.file.getvalue() == f"weights     {line}\n"


@pytest.mark.exhaustive
def test_a_run_records_where_its_weights_come_from_and_needs_them_once(
  config, finished, console
):
  step = load(finished).step
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    directory = train.run(config, console).directory
  record = json.loads((directory / "config.json").read_text())
  assert record["init_from"] == str(finished)
  assert record["init_from_step"] == step
  assert record["init_from_sha256"] == weights_sha256(load(finished))
  title = f"those of {finished}, step {step}, validation loss "
  assert f"weights     {title}" in console.file.getvalue()
  sample = read_run_history(directory).samples[0]
  assert (sample.step, "untrained" in sample.title) == (0, False)
  assert sample.title.startswith(f"step 0, epoch 0.0: {title}")
  # It has learnt already what the other run learnt first.
  first, of_the_other = read_rows(directory)[0], read_rows(finished)[0]
  assert first["train_loss"] < of_the_other["train_loss"] - 0.2
  shutil.rmtree(finished)
  assert train.run(config, console).stopped_by is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"hidden_size": 13}, "hidden_size must be 13, as in this run, got 12"),
    ({"embedding_size": 5}, "embedding_size must be 5, as in this run, got 4"),
    ({"num_layers": 2}, "num_layers must be 2, as in this run, got 1"),
    ({"cell": gru}, "cell must be 'gru', as in this run, got 'lstm'"),
    (
      {"tied": True, "embedding_size": 12},
      "tied must be True, as in this run, got False",
    ),
    ({"tokenizer": "word"}, "tokenizer must be 'word', as in this run, got 'c"),
    (
      {"val_fraction": 0.3},
      "val_fraction must be 0.3, as in this run, got 0.1",
    ),
    ({"init_from": "nowhere"}, "^--init_from: there is no run in nowhere: no "),
  ],
)
def test_the_weights_of_another_model_are_refused(
  changes, message, config, console
):
  with pytest.raises(ValueError, match=message) as error:
    train.run(replace(config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(config.job.run).exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      VERSE.replace("S", "Z"),
      "23 characters .*, got 23, without 'Z', with 'S'",
    ),
    (VERSE + "{|}~<>", r"'<', '>', '\{', '\|', '\}' and 1 more$"),
  ],
)
def test_the_weights_of_another_vocabulary_are_refused(
  text, message, config, console
):
  Path(config.data.corpus).write_text(text * 20, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    train.run(config, console)
  assert str(error.value).startswith(f"--init_from={config.init_from} has ano")
  assert not Path(config.job.run).exists()


def test_with_another_text_the_splits_may_differ(config, finished):
  path = Path(config.data.corpus)
  path.write_text(path.read_text()[::-1])
  setup = make_setup(replace(config, val_fraction=0.3))
  found, trained = read_pretrained(setup), load(finished)
  assert worst(found.params, trained.params) == 0


def test_a_vocabulary_in_another_order_is_refused(config, finished):
  setup, trained = make_setup(config), load(finished)
  tokenizer = CharTokenizer(trained.tokenizer.symbols[::-1])
  message = "^NAME has another vocabulary: .*, got 23 in another order$"
  with pytest.raises(ValueError, match=message):
    check_vocabulary(setup, trained._replace(tokenizer=tokenizer), "NAME")
