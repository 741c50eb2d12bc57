"""A trained model as a file: it computes what the run's model computes."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from experiments import export
from experiments.analysis.features import line_position, word_starts
from experiments.pages import writer
from experiments.trainer.data import read_corpus
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax import lstm
from tests.draws import normal_like, worst
from tests.experiments.pages import browser
from tests.experiments.pages.explored import PageData
from tests.experiments.starting import start_all

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
  path.write_bytes(b"before")
  said = export.run(str(explored_run), "stablehlo", str(path))
  assert said.startswith(f"{path}: {path.stat().st_size:,} bytes, stablehlo,")
  call = jax_export.deserialize(bytearray(path.read_bytes())).call
  assert worst(list(call(tokens, *leaves.values())), expected) < 1e-5  # float32


@pytest.mark.programs
def test_a_run_is_exported_to_onnx(explored_run, example, tmp_path):
  reason = "the package onnx is not installed"
  reference = pytest.importorskip("onnx.reference", reason=reason)
  tokens, leaves, expected = example
  path = tmp_path / "model.onnx"
  program = "export", f"--run={explored_run}"
  done, *refused = start_all(
    [
      (*program, f"--out={path}"),
      (*program, f"--out={path}2", "--format=onxx"),
    ]
  )
  assert done == (0, done[1], "") and done[1].startswith(f"{path}: ")
  assert "V = " in done[1] and "a token is a character" in done[1]
  inputs = {k: np.asarray(x) for k, x in leaves.items()}
  inputs["tokens"] = np.asarray(tokens, np.int64)
  found = reference.ReferenceEvaluator(str(path)).run(None, inputs)
  assert worst(found, [np.asarray(x) for x in expected]) < 1e-5  # float32
  ((status, out, err),) = refused
  assert (status, out) == (2, "") and "<onnx|stablehlo|html>" in err
  assert not (tmp_path / "model.onnx2").exists()


def test_a_run_is_exported_as_a_page(explored_run, tmp_path):
  path, trained = tmp_path / "page.html", load(explored_run)
  said = export.run(str(explored_run), "html", str(path))
  found = re.search(
    r"8-bit weights cost (\S+) nats per character \((\S+) before, (\S+) "
    r"after\), on ([\d,]+) characters of the validation split of verse\.txt$",
    said,
  )
  cost, before, after, length = map(browser.number, found.groups())
  assert abs(cost - (after - before)) < 2e-4 and abs(cost) < 0.05
  assert length == len(read_corpus(trained.config.data).val.text)
  page = PageData(path).header
  assert page["cost"] == said.split("; ")[-1] + "."
  num_weights = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
  assert page["about"] == (
    f"lstm, 2 × 12 units, {num_weights:,} weights, after 0 training steps. The "
    "model is in this page, and runs in your browser."
  )
  assert page["model"]["cell"] == "lstm" and len(page["layers"]) == 2


def test_a_page_of_a_run_with_a_development_split_sees_no_other(
  explored_run, tmp_path, monkeypatch
):
  trained = load(explored_run)
  config = replace(trained.config, val_fraction=0.5, dev_fraction=0.25)
  changed = trained._replace(config=config)
  monkeypatch.setattr(export, "load", lambda directory: changed)
  said = export.run(str(explored_run), "html", str(tmp_path / "page.html"))
  length = len(read_corpus(config.data).val.text)
  expected = f"on {length:,} characters of the development split of verse.txt"
  assert said.endswith(expected)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a title\n\n" + "word " * 30 + "\n \n", ("word " * 30).rstrip()),
    # A line of 49 characters: 240 hold four of them.
    ("title\n" + 9 * f"{'word ' * 9}end\n", 4 * f"{'word ' * 9}end\n"),
    ("title\n" + "word " * 99, "word " * 48),
    # A line that ends in the first half does not end the excerpt.
    ("title\nshort\n" + "x" * 300, "short\n" + "x" * 234),
  ],
)
def test_an_excerpt_has_whole_lines_or_else_words(text, expected):
  assert writer.excerpt(text) == expected.rstrip()


def test_the_unit_that_follows_a_feature_best_is_found_in_any_layer(
  monkeypatch,
):
  pieces = [*"To be, or\nnot to be,\nthat is"]
  text = "".join(pieces)
  h = np.random.default_rng(0).standard_normal((2, len(pieces), 3))
  c = h[::-1].copy()
  c[0, :, 2] = line_position(text)
  h[1, :, 1] = ~word_starts(text)  # an AUC of 0 is as good as one of 1
  # In place of a model's states, these, in which the best units are known.
  states = [lstm.LSTMState(*fields) for fields in zip(h, c, strict=True)]
  traces = [SimpleNamespace(states=state) for state in states]
  monkeypatch.setattr(writer, "trace_layers", lambda *_: (traces, None))
  layers, follows = writer.score_units(lstm, None, None, pieces)
  keys = "feature", "measure", "layer", "signal", "unit"
  assert [tuple(best[key] for key in keys) for best in follows] == [
    ("line position", "r", 0, "c", 2),
    ("word starts", "AUC", 1, "h", 1),
  ]
  assert np.allclose([best["score"] for best in follows], [1, 0], atol=1e-3)
  for layer, trace in zip(layers, traces, strict=True):
    for state, values in zip(layer, trace.states, strict=True):
      assert np.allclose(state["scale"], np.abs(values).max(0), rtol=1e-3)
