"""What explore, report and export refuse, and what they leave as it was."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explore, export, report
from experiments.explore import ExploreConfig
from experiments.pages import packed_model
from experiments.pages.explore import make_header
from experiments.pages.packing import Blobs
from experiments.report import ReportConfig
from experiments.trainer.config import CELLS
from experiments.trainer.trained import load
from lstm_jax import Autodiff, projected_lstm
from lstm_jax.language import ModelConfig, language_model
from lstm_jax.training import CheckpointError
from tests.experiments.pages.explored import write_run
from tests.patterns import exact
from tests.training.test_matrix_state import cell as matrix_cell


@pytest.fixture
def run(explored_run, tmp_path):
  """Return a copy of a run, which a test may damage."""
  return shutil.copytree(explored_run, tmp_path / "run")


@pytest.fixture(params=["explore", "report", "export"])
def write(request, console):
  """Return a function that has a program write the page of a run to `out`."""
  return {
    "explore": lambda run, out: explore.run(
      ExploreConfig(str(run), prompt="Shall", out=str(out)), console
    ),
    "report": lambda run, out: report.run(
      [str(run)], ReportConfig(str(out)), console
    ),
    "export": lambda run, out: export.run(str(run), "html", str(out)),
  }[request.param]


def test_no_program_replaces_a_file_of_a_run_or_its_corpus(
  write, run, tmp_path, monkeypatch
):
  before = (run / "config.json").read_bytes()
  text = Path(json.loads(before)["corpus"]).read_bytes()
  (tmp_path / "verse.txt").write_bytes(text)
  other = tmp_path / "other"  # a run, but not the one that is read
  other.mkdir()
  (other / "config.json").write_bytes(before)
  monkeypatch.chdir(tmp_path)
  for out, message in (
    (run / "config.json", "^out must be outside the run directory"),
    (other / "config.json", "^out must be outside the run directory"),
    ("verse.txt", "^out must be no file with the run's corpus, got verse.txt"),
    (tmp_path, "cannot be written: it is a directory"),
    ("nowhere/page.html", "cannot be written: no such directory"),
  ):
    with pytest.raises(ValueError, match=message):
      write(run, out)
  assert (tmp_path / "verse.txt").read_bytes() == text
  for directory in (run, other):
    assert (directory / "config.json").read_bytes() == before


def test_a_run_that_is_missing_or_damaged_is_an_error_of_one_line(
  write, run, tmp_path
):
  page = tmp_path / "page.html"
  with pytest.raises(ValueError, match="there is no run in "):
    write(tmp_path / "nowhere", page)
  record = json.loads((run / "config.json").read_text())
  (run / "config.json").write_text(json.dumps(record | {"cell": "gpt"}))
  with pytest.raises(ValueError, match="cell") as raised:
    write(run, page)
  assert "\n" not in str(raised.value) and not page.exists()


@pytest.mark.parametrize("damage", ["params", "corpus"])
def test_a_page_needs_the_weights_and_the_corpus(run, tmp_path, damage):
  message = "checkpoint .*0 cannot be read: "
  if damage == "params":
    shutil.rmtree(run / "checkpoints/0/params")
  else:
    record = json.loads((run / "config.json").read_text())
    other = tmp_path / "other.txt"
    other.write_text(Path(record["corpus"]).read_text() + "!", "utf-8")
    record["corpus"], message = str(other), "has changed"
    (run / "config.json").write_text(json.dumps(record))
  with pytest.raises((ValueError, CheckpointError), match=message) as raised:
    export.run(str(run), "html", str(tmp_path / "page.html"))
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "page.html").exists()


def test_a_model_that_a_page_cannot_hold_is_not_written(
  explored_run, tmp_path, monkeypatch
):
  def refused(message, format="html", **changes):
    model = dataclasses.replace(trained.config.model, **changes)
    config = dataclasses.replace(trained.config, model=model)
    changed = trained._replace(config=config)
    monkeypatch.setattr(export, "load", lambda directory: changed)
    with pytest.raises(ValueError, match=message):
      export.run(str(explored_run), format, str(tmp_path / "page.html"))
    assert not [*tmp_path.iterdir()]

  def no_onnx(*arguments):
    raise ModuleNotFoundError("pip install '.[interop]'")

  trained = load(explored_run)
  refused(
    "not run projected_lstm, only lstm, .*, relu_rnn$", cell=projected_lstm
  )
  monkeypatch.setattr(export, "language_model_to_onnx", no_onnx)
  refused(r"'\.\[interop\]'", format="onnx")
  refused("^format must be one of onnx, stablehlo, html, got", format="ONNX")
  with monkeypatch.context() as patch:
    patch.setattr(packed_model, "MAX_WEIGHTS", 1_000)
    refused(r"at most 1,000 weights, a byte each, and .* has [\d,]+$")
  monkeypatch.setattr(packed_model, "MAX_COST", -1.0)
  refused("8-bit weights may cost at most -1")


def test_a_text_that_cannot_be_explored_is_an_error_that_says_why(
  explored_run, tmp_path, word_config, console
):
  path = tmp_path / "text.txt"

  def refused(match, text=None, run=explored_run, **flags):
    if text is not None:
      path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match) as error:
      config = ExploreConfig(str(run), str(path), **flags)
      explore.run(config, console)
    assert "\n" not in str(error.value)

  refused(f"^{exact(path)} cannot be read: no such file")
  refused(f"^{exact(path)} is empty", "")
  refused("at least 2 characters, got 1", "S")
  refused("character 'é' at position 3 is not in the", "Shaéll")
  refused("^out must be another file than text", "Shall", out=str(path))
  assert path.read_text() == "Shall"
  refused(r"exclude each .*--prompt='more\\nSh", prompt="more\nShall")
  refused(r"length must be in \[2, inf\), got 1", length=1)
  words = write_run(word_config)
  refused("at least 2 words, got 1", "Shall", words)
  shutil.rmtree(words / "checkpoints")
  refused("holds no checkpoint", run=words)
  assert not (words / "explore.html").exists()


def test_a_state_that_is_no_vector_or_not_finite_has_no_page(key):
  def refused(message, cell, params):
    with pytest.raises(ValueError, match=message):
      make_header(cell, params, np.arange(7), [*"abcdefg"], Blobs())

  config = ModelConfig(matrix_cell, embedding_size=3, hidden_size=4)
  params = language_model(config, 7, adjoint=Autodiff()).init(key)
  refused(r"states that are vectors, got m \[4, 4\]$", matrix_cell, params)
  cell = CELLS["relu_rnn"]
  config = ModelConfig(cell, embedding_size=3, hidden_size=4)
  params = language_model(config, 7).init(key)
  (layer,) = params.layers  # h of about 10, 1e21, 1e41: the third overflows
  layer = layer._replace(w_h=1e20 * jnp.eye(4), b=jnp.full(4, 10.0))
  params = params._replace(layers=(layer,))
  refused("infinite or NaN from token 3 of the ", cell, params)
  params = params._replace(bias=params.bias.at[2].set(jnp.nan))
  refused("infinite or NaN from token 1 of the ", cell, params)


def test_a_report_needs_runs_and_their_rows(run, console):
  path = run / "metrics.jsonl"
  row = '{"step": 10, "train_loss": 2.0}\n'
  path.write_text(f'{row}{{"step": 1, "train_loss": NaN}}\n{row}')
  for runs, message in (
    ([], "expected run directories: report RUN"),
    ([run, run / ".." / "run"], "run is given twice"),
    ([run], f"line 2 of {exact(path)} is not a row"),
  ):
    with pytest.raises(ValueError, match=message):
      report.run([*map(str, runs)], ReportConfig(), console)
