"""A trained model as a file: it computes what the run's model computes."""

import dataclasses
import errno
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from experiments import export
from experiments.pages import packed_model, quantized
from experiments.trainer.data import read_corpus
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax import projected_lstm
from tests.draws import normal_like, worst
from tests.experiments.pages.explored import PageData
from tests.experiments.starting import start_all
from tests.patterns import exact

T, B = 7, 2


@pytest.fixture(scope="module")
def example(explored_run):
  """Return (tokens, a state's arrays by name, what the model makes of them).

  The last is a list: the logits, and the arrays of the state after the tokens.
  """
  trained = load(explored_run)
  key = jax.random.key(0)
  tokens = jax.random.randint(key, (T, B), 0, trained.tokenizer.size, jnp.int32)
  state = normal_like(key, trained.model.initial_state((B,)))
  after, logits = trained.model.apply(trained.params, state, tokens)
  names = [f"{name}_{k}" for k in range(len(state)) for name in "hc"]
  leaves = dict(zip(names, jax.tree.leaves(state), strict=True))
  return tokens, leaves, [logits, *jax.tree.leaves(after)]


def test_a_run_is_exported_for_jax(explored_run, example, tmp_path):
  tokens, leaves, expected = example
  path = tmp_path / "model"
  said = export.run(str(explored_run), "stablehlo", str(path))
  assert said.startswith(f"{path}: {path.stat().st_size:,} bytes, stablehlo,")
  call = jax_export.deserialize(bytearray(path.read_bytes())).call
  assert worst(list(call(tokens, *leaves.values())), expected) < 1e-5  # float32


def test_a_file_in_a_run_directory_is_refused(explored_run, tmp_path):
  config = (explored_run / "config.json").read_bytes()
  link, other = tmp_path / "link", tmp_path / "other"
  link.symlink_to(explored_run)
  other.mkdir()  # a run, but not the one that is exported
  (other / "config.json").write_bytes(config)
  for directory, out in (
    (explored_run, explored_run / "config.json"),
    (explored_run, explored_run / "new" / ".." / "model.onnx"),
    (explored_run, link / "config.json"),
    (other, other / "config.json"),
  ):
    message = f"outside the run directory {directory}, got {out}"
    with pytest.raises(ValueError, match=f"^out must be {exact(message)}$"):
      export.run(str(explored_run), "stablehlo", str(out))
  with pytest.raises(ValueError, match="cannot be written: it is a directory"):
    export.run(str(explored_run), "stablehlo", str(explored_run))
  for directory in (explored_run, other):
    assert (directory / "config.json").read_bytes() == config


@pytest.mark.parametrize("format", ["stablehlo", "html"])
def test_the_corpus_of_the_run_is_not_overwritten(
  explored_run, format, tmp_path, monkeypatch
):
  """Its text is what counts: config.json may hold a relative or old path."""
  monkeypatch.chdir(tmp_path)
  text = Path(load(explored_run).config.data.corpus).read_bytes()
  (tmp_path / "verse.txt").write_bytes(text)
  message = "^out must be no file with the run's corpus, got verse.txt$"
  with pytest.raises(ValueError, match=message):
    export.run(str(explored_run), format, "verse.txt")
  assert (tmp_path / "verse.txt").read_bytes() == text
  # A file of another text is replaced.
  (tmp_path / "other.txt").write_text("another text")
  export.run(str(explored_run), "stablehlo", "other.txt")
  assert (tmp_path / "other.txt").read_bytes()[:7] != b"another"


def test_a_format_that_is_not_known_is_refused(explored_run, tmp_path):
  message = "^format must be one of onnx, stablehlo, html, got 'ONNX'$"
  with pytest.raises(ValueError, match=message):
    export.run(str(explored_run), "ONNX", str(tmp_path / "model.onnx"))
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  ("out", "reason"),
  [("nowhere/model", "no such directory"), ("", "it is a directory")],
)
def test_a_path_that_cannot_be_written_is_refused_before_the_run_is_read(
  out, reason, tmp_path
):
  message = f"^{re.escape(str(tmp_path / out))} cannot be written: {reason}$"
  with pytest.raises(ValueError, match=message):
    export.run(str(tmp_path / "no run"), "stablehlo", str(tmp_path / out))


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(
  explored_run, tmp_path, monkeypatch
):
  path = tmp_path / "model"
  path.write_bytes(b"before")
  monkeypatch.setattr(export, "_stablehlo", lambda trained: b"after")

  def fill_the_disk(file, data):
    with file.open("wb") as opened:
      opened.write(data[:1])
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match=re.escape(repr(str(path)))):
      export.run(str(explored_run), "stablehlo", str(path))
  assert path.read_bytes() == b"before"
  export.run(str(explored_run), "stablehlo", str(path))
  assert path.read_bytes() == b"after"


@pytest.mark.programs
def test_a_run_is_exported_to_onnx(explored_run, example, tmp_path):
  reason = "the package onnx is not installed"
  reference = pytest.importorskip("onnx.reference", reason=reason)
  tokens, leaves, expected = example
  path = tmp_path / "model.onnx"
  program = "export", f"--run={explored_run}"
  missing = tmp_path / "nowhere" / "model.onnx"
  done, *refused = start_all(
    [
      (*program, f"--out={path}"),
      (*program, f"--out={missing}"),
      (*program, f"--out={path}2", "--format=onxx"),
    ]
  )
  assert done == (0, done[1], "") and done[1].startswith(f"{path}: ")
  assert "V = " in done[1] and "a token is a character" in done[1]
  inputs = {k: np.asarray(x) for k, x in leaves.items()}
  inputs["tokens"] = np.asarray(tokens, np.int64)
  found = reference.ReferenceEvaluator(str(path)).run(None, inputs)
  assert worst(found, [np.asarray(x) for x in expected]) < 1e-5  # float32
  errors = "nowhere", "should be one of <onnx|stablehlo|html>"
  for (status, out, err), words in zip(refused, errors, strict=True):
    assert (status, out) == (2, "") and words in err.replace("\n", " ")
  assert not (tmp_path / "model.onnx2").exists()


def test_without_onnx_the_error_names_the_extra(
  explored_run, tmp_path, monkeypatch
):
  def refuse(*arguments):
    raise ModuleNotFoundError("pip install '.[interop]'")

  monkeypatch.setattr(export, "language_model_to_onnx", refuse)
  with pytest.raises(ValueError, match=r"'\.\[interop\]'"):
    export.run(str(explored_run), "onnx", str(tmp_path / "model.onnx"))
  assert [*tmp_path.iterdir()] == []


def test_a_page_whose_rounding_costs_too_much_is_not_written(
  explored_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(quantized, "MAX_COST", -1.0)
  with pytest.raises(ValueError, match="8-bit weights may cost at most -1"):
    export.run(str(explored_run), "html", str(tmp_path / "page.html"))
  assert [*tmp_path.iterdir()] == []


@pytest.fixture
def trained(explored_run):
  return load(explored_run)


def test_a_run_is_exported_as_a_page(explored_run, trained, tmp_path):
  path = tmp_path / "page.html"
  said = export.run(str(explored_run), "html", str(path))
  found = re.search(
    r"8-bit weights cost ([−+][\d.]+) nats per character \(([\d.]+) before, "
    r"([\d.]+) after\), on ([\d,]+) characters of the validation split of "
    r"verse\.txt$",
    said,
  )
  cost, before, after = (
    float(number.replace("−", "-")) for number in found.groups()[:3]
  )
  assert abs(cost - (after - before)) < 2e-4 and abs(cost) < 0.05
  page = PageData(path).header
  assert page["cost"] == said.split("; ")[-1] + "."
  num_weights = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
  assert page["about"] == (
    f"lstm, 2 × 12 units, {num_weights:,} weights, after 0 training steps. The "
    "model is in this page, and runs in your browser."
  )
  assert page["model"]["cell"] == "lstm" and len(page["layers"]) == 2
  assert "<script src" not in path.read_text(encoding="utf-8")


def test_a_page_is_of_the_validation_or_the_development_split(
  explored_run, trained, monkeypatch
):
  def make_page(trained, text, source):  # ends the export, and shows its text
    raise ValueError(f"{len(text)} characters of {source}")

  monkeypatch.setattr(export.writer, "make_page", make_page)
  for changes, split in (
    ({"val_fraction": 0.25}, "validation"),
    ({"val_fraction": 0.5, "dev_fraction": 0.25}, "development"),
  ):
    config = replace(trained.config, **changes)
    other = trained._replace(config=config)
    length = len(read_corpus(config.data).val.text)
    expected = rf"^{length} characters of the {split} split of verse"
    with pytest.raises(ValueError, match=expected):
      export._html(other, explored_run)


def test_a_page_that_cannot_be_made_is_an_error_that_says_why(
  explored_run, trained, tmp_path, monkeypatch
):
  def export_with(**changes):
    model = dataclasses.replace(trained.config.model, **changes)
    config = dataclasses.replace(trained.config, model=model)
    changed = trained._replace(config=config)
    monkeypatch.setattr(export, "load", lambda directory: changed)
    export.run(str(explored_run), "html", str(tmp_path / "page.html"))

  with pytest.raises(
    ValueError,
    match=r"not run projected_lstm, only lstm, layernorm_lstm, .*, relu_rnn$",
  ):
    export_with(cell=projected_lstm)
  monkeypatch.setattr(packed_model, "MAX_WEIGHTS", 1_000)
  with pytest.raises(
    ValueError, match=r"at most 1,000 weights, a byte each, and .* has [\d,]+$"
  ):
    export_with()
  assert not (tmp_path / "page.html").exists()
