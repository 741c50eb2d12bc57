"""The page of `experiments.explore`: its numbers are those of the library."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explore
from experiments.analysis.features import inside_quotes, line_position, scores
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import signals, trace_layers
from experiments.explore import ExploreConfig
from experiments.pages.explore import (
  TEMPLATE,
  TOP_TOKENS,
  WINDOW,
  make_header,
  pack_path,
)
from experiments.pages.packing import Blobs
from experiments.trainer import run_dir
from experiments.trainer.config import CELLS
from experiments.trainer.opening import open_run_dir
from experiments.trainer.records import replace
from experiments.trainer.run_dir import SHA256
from experiments.trainer.trained import load
from lstm_jax.language import ModelConfig, language_model, read_text, split
from tests.contract import NAMES
from tests.experiments.pages.explored import (
  HOSTILE,
  LENGTH,
  PageData,
  val_text,
  write_run,
)
from tests.experiments.test_cli import finish, start


@pytest.mark.exhaustive
def test_the_text_is_the_beginning_of_the_validation_split(
  explored_page, explored_run
):
  data = PageData(explored_page)
  assert data.text == val_text(explored_run)
  assert len(data.header["pieces"]) == len(data.text) == LENGTH
  assert "lstm, 2 × 12 units" in data.header["about"]
  assert (
    "400 characters of the validation split of verse.txt"
    in (data.header["source"])
  )


def test_of_a_run_with_a_test_split_its_beginning_is_the_text(
  config, console, monkeypatch
):
  config = replace(config, test_fraction=0.2, val_fraction=0.3)
  directory, calls = write_run(config), []
  monkeypatch.setattr(explore, "make_page", lambda *a: calls.append(a) or "")
  explore.run(ExploreConfig(str(directory), length=50), console)
  ((trained, tokens, source),) = calls
  text = read_text(config.data.corpus)
  assert trained.tokenizer.decode(tokens) == split(text, 0.2)[1][:50]
  assert source == f"the test split of {Path(config.data.corpus).name}"


def test_the_page_has_states_and_gates_to_half_a_level(
  explored_page, explored_run
):
  """Those of `cell.step`, and of `signals`, which its own tests compare."""
  data, trained = PageData(explored_page), load(explored_run)
  tokens = trained.tokenizer.encode(val_text(explored_run))
  xs = trained.params.embedding[tokens]
  cell = CELLS["lstm"]
  layers, _ = trace_layers(cell, trained.params, jnp.asarray(tokens))
  for number, weights in enumerate(trained.params.layers):

    def step(state, x, weights=weights):
      after = cell.step(weights, state, x)
      return after, after

    _, states = jax.lax.scan(step, cell.initial_state(weights), xs)
    gates = signals(cell, layers[number])
    assert list(gates) == ["h", "c", "i", "f", "g", "o"]
    for name, values in (gates | states._asdict()).items():
      decoded, half = data.signal(number, name)
      assert (np.abs(decoded - values.T) <= half + 1e-5).all(), (number, name)
    xs = states.h


def test_the_next_character_is_the_softmax_of_the_logits(
  explored_page, explored_run
):
  data, trained = PageData(explored_page), load(explored_run)
  tokens = trained.tokenizer.encode(val_text(explored_run))
  model, state = trained.model, trained.model.initial_state(())
  _, logits = model.apply(trained.params, state, tokens)
  p = np.asarray(jax.nn.softmax(logits))
  blobs, count = data.header["next"], TOP_TOKENS
  top_tokens = data.array(blobs["tokens"], "<u4").reshape(-1, count)
  top_p = data.array(blobs["probabilities"], "<u2").reshape(-1, count) / 65535
  expected = -np.sort(-p, axis=-1)[:, :count]
  assert np.abs(top_p - expected).max() < 0.5 / 65535 + 1e-6
  p_of_tokens = np.take_along_axis(p, top_tokens.astype(int), axis=-1)
  assert np.abs(top_p - p_of_tokens).max() < 0.5 / 65535 + 1e-6
  assert all(len(set(row)) == count for row in top_tokens)
  actual = data.array(blobs["actual"], "<f4")
  assert len(actual) == LENGTH - 1
  assert np.abs(actual - p[np.arange(LENGTH - 1), tokens[1:]]).max() < 1e-6


def test_gradient_norms_are_stored_to_six_per_cent(explored_page, explored_run):
  data, trained = PageData(explored_page), load(explored_run)
  tokens = trained.tokenizer.encode(val_text(explored_run))
  cell, params = CELLS["lstm"], trained.params
  layers, _ = trace_layers(cell, params, jnp.asarray(tokens))
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  for number, path in enumerate(paths):
    for name, norms in data.paths(number).items():
      expected = getattr(path, name)
      in_range = expected > 1.001e-12 * expected.max()
      assert in_range.mean() > 0.5
      assert np.abs(norms[in_range] / expected[in_range] - 1).max() < 0.057
      assert ((norms == 0) == (expected == 0)).all()


def test_units_are_scored_by_every_feature_that_the_text_has(
  explored_page, explored_run
):
  data, text = PageData(explored_page), val_text(explored_run)
  names = [feature["name"] for feature in data.header["features"]]
  assert names == [
    "line position",
    "inside quotes",
    "word starts",
    "speaker names",
  ]
  measures = [feature["measure"] for feature in data.header["features"]]
  assert measures == ["r", "AUC", "AUC", "AUC"]
  for signal in data.header["layers"][1]["signals"]:
    levels = data.array(signal["blob"]).reshape(12, LENGTH)
    for k, feature in enumerate((line_position, inside_quotes)):
      expected = scores(levels, feature(text))
      assert np.abs(np.array(signal["scores"][k]) - expected).max() < 1e-4


def test_the_page_holds_no_part_of_the_text_unpacked(explored_page):
  html = explored_page.read_text(encoding="utf-8")
  assert HOSTILE in PageData(explored_page).text
  for part in ("document.title", "First Lord", "Shall I", "lovely"):
    assert part not in html
  scripts = html.count("<script")
  assert (
    scripts
    == html.count("</script")
    == len(PageData(explored_page).scripts) + 11  # head, and ten of the page
  )
  assert not re.search(r"https?:|\bsrc=|@import|url\(", html)


@pytest.mark.exhaustive
def test_another_text_is_read_from_its_beginning(
  explored_run, tmp_path, console
):
  text, output = tmp_path / "text.txt", tmp_path / "page.html"
  text.write_text("Shall I more\r\nlovely", encoding="utf-8")
  config = ExploreConfig(
    str(explored_run), str(text), length=15, output=str(output)
  )
  page = explore.run(config, console)
  assert page == (output, output.stat().st_size)
  printed = " ".join(console.file.getvalue().split())
  assert f"{output}: {page.size / 1e6:.2f} MB" in printed
  header = PageData(output).header
  assert "".join(header["pieces"]) == "Shall I more\nlo"
  assert header["constant"] == ["inside quotes", "speaker names"]
  assert f"15 characters of {text}" in header["source"]


@pytest.mark.exhaustive
def test_a_prompt_is_shown_in_place_of_a_text(explored_run, tmp_path, console):
  output = tmp_path / "page.html"
  prompt = "more\nShall"
  explore.run(
    ExploreConfig(str(explored_run), prompt=prompt, output=str(output)), console
  )
  header = PageData(output).header
  assert "".join(header["pieces"]) == prompt
  assert "10 characters of a prompt" in header["source"]
  with pytest.raises(ValueError, match=r"exclude each .*--prompt='more\\nSh"):
    ExploreConfig(str(explored_run), text="a.txt", prompt=prompt)
  with pytest.raises(ValueError, match="character 'é' at position 1 is not in"):
    explore.run(ExploreConfig(str(explored_run), prompt="Sé"), console)


@pytest.mark.exhaustive
def test_a_word_model_is_shown_word_by_word(words_page, tmp_path, console):
  directory, text = words_page.parent, tmp_path / "text.txt"
  data, trained = PageData(words_page), load(directory)
  line = ["Thou", " art", " more", " lovely", ",", " more", "\n  "]
  line += ["<unk>", " Thou", " art", "\n", "more"]
  assert data.header["pieces"] == [*line, "\n", *line, "\n", *line]
  assert data.header["unit"] == "word"
  assert "38 words of" in data.header["source"]
  tokens = data.array(data.header["tokens"], "<u4")
  assert (tokens == trained.tokenizer.encode(text.read_text())).all()
  model, state = trained.model, trained.model.initial_state(())
  _, logits = model.apply(trained.params, state, tokens)
  p = np.asarray(jax.nn.softmax(logits))[np.arange(37), tokens[1:]]
  actual = data.array(data.header["next"]["actual"], "<f4")
  assert np.abs(actual - p).max() < 1e-6
  names = [feature["name"] for feature in data.header["features"]]
  assert names == ["line position", "word starts"]
  short = ExploreConfig(str(directory), str(text), length=3)
  assert len(PageData(explore.run(short, console).path).header["pieces"]) == 3


def test_what_cannot_be_explored_is_an_error_that_says_why(
  explored_run, tmp_path, word_config, console
):
  path = tmp_path / "text.txt"

  def refused(match, run=explored_run, text=None, output=""):
    if text is not None:
      path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match) as error:
      config = ExploreConfig(str(run), str(path), output=str(output))
      explore.run(config, console)
    assert "\n" not in str(error.value)

  refused("text.txt cannot be read: no such file")
  refused("text.txt is empty", text="")
  refused("at least 2 characters, got 1", text="S")
  refused("character 'é' at position 3 is not in the", text="Shaéll")
  nowhere = tmp_path / "nowhere"
  refused("page cannot be written: no such dir", output=nowhere / "page")
  refused("there is no run in .*nowhere: no such directory", nowhere)
  words = write_run(word_config)
  refused("at least 2 words, got 1", words, text="Shall")
  assert not (words / run_dir.PAGE).exists()
  shutil.rmtree(words / run_dir.CHECKPOINTS)
  refused("holds no checkpoint", words)
  with pytest.raises(ValueError, match=r"length must be in \[2, inf\), got 1"):
    ExploreConfig(str(explored_run), length=1)


def test_a_replaced_run_is_set_aside_with_its_page(config):
  facts = {SHA256: ""}
  with open_run_dir(config, facts) as (directory, *_):
    page = directory / run_dir.PAGE
    page.write_text("page of the first run")
  with open_run_dir(replace(config, overwrite=True), facts):
    assert not page.exists()
    assert (directory / run_dir.PREVIOUS / page.name).exists()


@pytest.mark.exhaustive
@pytest.mark.programs
def test_the_program_writes_a_page(explored_run, tmp_path):
  output = tmp_path / "page.html"
  flags = f"--run={explored_run}", "--length=30", f"--output={output}"
  status, out, err = finish(start("explore", *flags))
  assert (status, err) == (0, "")
  assert f"page    {output}: " in out
  assert len(PageData(output).text) == 30


@pytest.mark.everyday(1)
@NAMES
def test_every_cell_has_a_page(name, key):
  text = "to be or not to be"
  symbols = sorted(set(text))
  tokens = np.array([symbols.index(c) for c in text], np.int32)
  config = ModelConfig(
    CELLS[name], embedding_size=3, hidden_size=4, num_layers=2
  )
  params = language_model(config, len(symbols)).init(key)
  blobs = Blobs()
  header = make_header(CELLS[name], params, tokens, [*text], blobs)
  letters = dict.fromkeys(
    ("rnn", "relu_rnn", "min_gru", "min_lstm", "lru"), "h"
  )
  fields_of = letters | {"gru": "h", "gru_reset_before": "h", "slstm": "hcnm"}
  letters |= {
    "gru": "hrzn",
    "gru_reset_before": "hrzn",
    "coupled_lstm": "hcfgo",
    "slstm": "hcnmifgo",
  }
  meanings_of_n = {
    "gru": "candidate",
    "gru_reset_before": "candidate",
    "slstm": "normaliser",
  }
  for layer in header["layers"]:
    signals_of_layer = "".join(signal["name"] for signal in layer["signals"])
    assert signals_of_layer == letters.get(name, "hcifgo")
    fields = [path["name"] for path in layer["paths"]]
    assert fields == [*fields_of.get(name, "hc")]
    meanings = {s["name"]: s["meaning"] for s in layer["signals"]}
    assert meanings.get("n") == meanings_of_n.get(name)
  assert header["next"]["count"] == len(symbols) < TOP_TOKENS
  assert 'id="header"' in blobs.page(TEMPLATE, header)


def test_a_gradient_that_overflows_is_the_largest_and_not_none():
  for finite, bounds in (([1.0, 1e-3], [-3, 0]), ([0.0, 0.0], [0, 1e-3])):
    norms = np.array([[finite[0], np.inf], [finite[1], np.nan]], np.float32)
    taken = []
    header = pack_path("h", norms, SimpleNamespace(add=taken.append))
    assert np.allclose([header["low"], header["high"]], bounds)
    (levels,) = taken
    assert levels.max() > 0 and (levels[:, 1] == levels.max()).all()
    assert ((levels[:, 0] > 0) == (norms[:, 0] > 0)).all()
    assert (levels[0, 0] > levels[1, 0]) == (finite[0] > finite[1])
