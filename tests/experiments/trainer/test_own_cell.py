"""--cell names a module outside the package, as docs/own-cell.md says."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import jax
import pytest
from absl import flags

from experiments import train
from experiments.explore import ExploreConfig
from experiments.explore import run as explore
from experiments.trainer.config import TrainConfig
from experiments.trainer.distributed import pays
from experiments.trainer.own_cell import FUNCTIONS, import_cell
from experiments.trainer.records import (
  config_from_flags,
  define_flags,
  from_record,
  replace,
  to_record,
)
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax import lstm
from lstm_jax.cells import RELU
from tests.experiments.sampled import sample_texts
from tests.experiments.test_train import SAMPLE
from tests.experiments.trainer.resuming import outcome
from tests.test_docs import DOCS, code_blocks

# The page's first code block: a module with a cell.
FILE, *_ = code_blocks((DOCS / "own-cell.md").read_text("utf-8"))
# The LSTM under another name.
TWIN = f"from lstm_jax.cells.lstm import {', '.join(FUNCTIONS)}, takes_tokens\n"


@pytest.fixture
def path(tmp_path, monkeypatch):
  """A directory on Python's path, whose modules are forgotten afterwards."""
  directory = tmp_path / "mine"
  directory.mkdir()
  monkeypatch.syspath_prepend(directory)
  yield directory
  forget(
    name
    for name, module in [*sys.modules.items()]
    if str(directory) in (getattr(module, "__file__", None) or "")
  )


def forget(names):
  for name in names:
    sys.modules.pop(name, None)
  importlib.invalidate_caches()
  import_cell.cache_clear()


def write_cell(path, text):
  """Write a package with one module, `cells.mine`; return the module."""
  package = path / "cells"
  package.mkdir()
  (package / "__init__.py").touch()
  (package / "mine.py").write_text(text, encoding="utf-8")
  return import_cell("cells.mine")


def from_flags(*arguments):
  flag_values = flags.FlagValues()
  holders = define_flags(TrainConfig(), flag_values)
  flag_values(["train", *arguments])
  return config_from_flags(TrainConfig(), holders)


@pytest.mark.exhaustive
def test_a_run_of_a_cell_outside_the_package_is_recorded_and_read_again(
  path, config, console, finished_config
):
  cell = write_cell(path, TWIN)
  found = from_flags("--cell=cells.mine").model.cell
  assert found is cell is sys.modules["cells.mine"]
  config = replace(config, cell=found)
  assert from_record(TrainConfig(), to_record(config)) == config
  directory = train.run(config, console).directory
  assert "model       cells.mine, 1 × 12 hidden" in console.file.getvalue()
  record = json.loads((directory / "config.json").read_text())
  assert record["cell"] == "cells.mine"
  assert outcome(directory) == outcome(Path(finished_config.job.run))

  forget(["cells", "cells.mine"])  # as in another process
  trained = load(directory)
  assert trained.config.model.cell.__file__ == cell.__file__
  forget(["cells", "cells.mine"])
  (path / "cells" / "mine.py").unlink()
  with pytest.raises(ValueError, match="there is no module cells"):
    load(directory)


@pytest.mark.exhaustive
def test_the_cell_of_the_page_is_trained_sampled_and_explored(
  path, config, console
):
  cell = write_cell(path, FILE)
  directory = train.run(replace(config, cell=cell), console).directory
  (text,) = sample_texts(str(directory), **SAMPLE)
  assert text.startswith("Shall I")
  page = explore(ExploreConfig(str(directory), length=50), console)
  assert page.path.exists()


# A cell's w_h may be a tree: here the matrix of an RNN in a tuple.
TREE = """
from lstm_jax.cells.cell import one_step
from lstm_jax.cells.rnn import *
from lstm_jax.cells import rnn

def tree(params): return params._replace(w_h=(params.w_h,))
def flat(params): return params._replace(w_h=params.w_h[0])
def init(*args): return tree(rnn.init(*args))
def initial_state(params, *args): return rnn.initial_state(flat(params), *args)
def project(params, x): return rnn.project(flat(params), x)
def recur(params, *args): return rnn.recur(flat(params), *args)
def recur_backward(params, *args):
  return rnn.recur_backward(flat(params), *args)
def parameter_gradients(params, *args):
  d_params, dx = rnn.parameter_gradients(flat(params), *args)
  return tree(d_params), dx
forward, backward, step = one_step(
  initial_state, project, recur, recur_backward, parameter_gradients
)
"""


def test_a_recurrent_matrix_may_be_in_a_tree(path):
  (path / "tree.py").write_text(TREE)
  config = from_flags("--cell=tree", "--hidden_size=8", "--weight_drop=0.5")
  assert not pays(config, count=2)
  corpus = path / "corpus.txt"
  corpus.write_text("abc\n" * 1000)
  config = replace(config, weight_drop=0.0, corpus=str(corpus), mesh="data:1")
  (sharding,) = make_setup(config).shardings.params.layers[0].w_h
  assert sharding.is_fully_replicated


def test_a_module_in_a_run_directory_is_not_imported(path):
  """In a package there, or where the current directory is such a run."""
  record = json.dumps(to_record(TrainConfig()))
  run = path / "runs" / "theirs"
  (run / "more").mkdir(parents=True)
  for name in ("__init__", "mine", "more/__init__", "more/mine"):
    (run / f"{name}.py").write_text("raise RuntimeError")
  (run / "config.json").write_text(record)
  for end in ("", ".mine", ".more", ".more.mine"):
    with pytest.raises(ValueError, match=r"theirs, the directory of a run$"):
      import_cell(f"runs.theirs{end}")
  with pytest.raises(ValueError, match="no module nowhere"):
    import_cell("nowhere.mine")
  (path / "beside.py").write_text(TWIN)
  assert import_cell("beside")  # of the directory of runs
  (path / "outside.py").write_text("raise RuntimeError")
  (path / "config.json").write_text(record)
  with pytest.raises(ValueError, match=r"mine, the directory of a run$"):
    import_cell("outside")


def test_no_device_is_started(path, monkeypatch):
  def start():
    raise RuntimeError("a device is started")

  monkeypatch.setattr(jax, "default_backend", start)
  (path / "of_lstm.py").write_text(TWIN)
  import_cell("of_lstm")


def test_a_cell_in_the_package_has_a_name_of_its_own():
  config = from_flags("--cell=lstm_jax.cells.lstm")
  assert config.model.cell is lstm
  assert to_record(config)["cell"] == "lstm"
  relu = replace(config, cell=lstm.with_activations(candidate=RELU))
  with pytest.raises(ValueError, match="cell must be a module to have a name"):
    to_record(relu)
  flag_values = flags.FlagValues()
  define_flags(TrainConfig(), flag_values)
  text = flag_values["cell"].help
  assert "lstm | layernorm_lstm | " in text
  assert "lru, or the name of a module of your own." in text


OTHER = FILE + "\ndef step(params, state, x):\n  return state._replace(h=x)\n"
# With one c for the whole batch.
SHARED = (
  FILE.replace("c=jnp.zeros(shape, ", "c=jnp.zeros((), ")
  .replace("State(o * jnp.tanh(c), c)", "State(o * jnp.tanh(c), state.c)")
  .replace("dc = dc_sum * f", "dc = (dc_sum * f).sum()")
)
# A product of one batch axis only.
ONE_AXIS = FILE.replace('jnp.einsum("...d,...k->dk", x, da)', "x.T @ da")


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("lsmt", None, "there is no module lsmt on Python's path"),
    ("nowhere.cell", None, "there is no module nowhere on"),
    ("broken", "def f(:\n", "its import raises SyntaxError: inva"),
    ("needs", "import nothing_here", "there is no module nothing_here on"),
    ("silent", "raise NotImplementedError", "raises NotImplementedError$"),
    ("empty", "", "it has no function init, initial_state, project, recur, "),
    ("nostep", f"{FILE}\ndel step\n", "it has no function step$"),
    ("other", OTHER, r"a state like the previous state, got .*2, 3.* for "),
    ("one_axis", ONE_AXIS, "gradient raises "),
    ("no_tokens", f"takes_tokens = True\n{FILE}", "gradient raises TypeError"),
    ("one_for_all_rows", SHARED, r"the batch axes \[2\], got state.c \[\]$"),
  ],
)
def test_what_is_no_cell_is_an_error_of_one_line(name, text, message, path):
  if text is not None:
    (path / f"{name}.py").write_text(text, encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    from_flags(f"--cell={name}")
  assert str(error.value).startswith("cell must be one of lstm, ")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(  # what is not 0 for the sizes that it refuses
  "wrong", ["hidden_size % 8", "input_size - hidden_size"]
)
def test_a_cell_may_refuse_some_sizes(wrong, path):
  first = f"{FILE.split('def init')[1].splitlines()[0]}\n"
  assert FILE.count(first) == 1
  refusal = f"  if {wrong}: raise ValueError('not these sizes')\n"
  (path / "choosy.py").write_text(FILE.replace(first, first + refusal))
  config = from_flags("--cell=choosy", "--hidden_size=7")
  for read in (make_setup, partial(pays, count=2)):  # before a run is made
    with pytest.raises(ValueError, match=r"^not these sizes"):
      read(config)
