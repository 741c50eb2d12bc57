"""The page of `experiments.explore`: its numbers are the library's."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explore
from experiments.analysis.features import inside_quotes, line_position, scores
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import read, signals
from experiments.explore import Blobs, ExploreConfig
from experiments.trainer import run_dir
from experiments.trainer.claim import PREVIOUS, claimed
from experiments.trainer.config import CELLS
from lstm_jax.language import ModelConfig, language_model
from tests.contract import NAMES
from tests.experiments.pages.explored import (
  HOSTILE,
  LENGTH,
  Read,
  held_out,
  write_run,
)
from tests.experiments.test_cli import finish, start


def test_the_text_is_the_beginning_of_the_held_out_split(
  explored_page, explored_run
):
  found = Read(explored_page)
  assert found.text == held_out(explored_run)
  assert len(found.header["pieces"]) == len(found.text) == LENGTH
  assert "lstm, 2 × 12 units" in found.header["about"]


def test_states_and_gates_are_those_of_the_step_within_half_a_level(
  explored_page, explored_run
):
  found, trained = Read(explored_page), run_dir.load(explored_run)
  tokens = trained.vocabulary.encode(held_out(explored_run))
  xs = trained.params.embedding[tokens]
  cell = CELLS["lstm"]
  layers, _ = read(cell, trained.params, jnp.asarray(tokens))
  for number, weights in enumerate(trained.params.layers):

    def step(state, x, weights=weights):
      after = cell.step(weights, state, x)
      return after, after

    _, states = jax.lax.scan(step, cell.initial_state(weights), xs)
    gates = signals(cell, layers[number])
    assert list(gates) == ["h", "c", "i", "f", "g", "o"]
    for name, values in (gates | states._asdict()).items():
      decoded, half = found.signal(number, name)
      assert (np.abs(decoded - values.T) <= half + 1e-5).all(), (number, name)
    xs = states.h


def test_the_next_character_is_the_softmax_of_the_logits(
  explored_page, explored_run
):
  found, trained = Read(explored_page), run_dir.load(explored_run)
  tokens = trained.vocabulary.encode(held_out(explored_run))
  model, nothing = trained.model, trained.model.initial_state(())
  _, logits = model.apply(trained.params, nothing, tokens)
  p = np.asarray(jax.nn.softmax(logits))
  where, count = found.header["next"], explore.LIKELIEST
  likeliest = found.array(where["tokens"], "<u4").reshape(-1, count)
  shares = found.array(where["shares"], "<u2").reshape(-1, count) / 65535
  expected = -np.sort(-p, axis=-1)[:, :count]
  assert np.abs(shares - expected).max() < 0.5 / 65535 + 1e-6
  of_them = np.take_along_axis(p, likeliest.astype(int), axis=-1)
  assert np.abs(shares - of_them).max() < 0.5 / 65535 + 1e-6
  assert all(len(set(row)) == count for row in likeliest)
  own = found.array(where["own"], "<f4")
  assert len(own) == LENGTH - 1
  assert np.abs(own - p[np.arange(LENGTH - 1), tokens[1:]]).max() < 1e-6


def test_paths_are_kept_to_six_per_cent(explored_page, explored_run):
  found, trained = Read(explored_page), run_dir.load(explored_run)
  tokens = trained.vocabulary.encode(held_out(explored_run))
  cell, params = CELLS["lstm"], trained.params
  layers, _ = read(cell, params, jnp.asarray(tokens))
  paths = gradient_paths(cell, params, layers, tokens, explore.WINDOW)
  for number, path in enumerate(paths):
    for name, norms in found.paths(number).items():
      expected = getattr(path, name)
      seen = expected > 1.001e-12 * expected.max()
      assert seen.mean() > 0.5
      assert np.abs(norms[seen] / expected[seen] - 1).max() < 0.057
      assert ((norms == 0) == (expected == 0)).all()


def test_units_are_scored_by_every_feature_that_the_text_has(
  explored_page, explored_run
):
  found, text = Read(explored_page), held_out(explored_run)
  names = [feature["name"] for feature in found.header["features"]]
  assert names == [
    "line position",
    "inside quotes",
    "word starts",
    "speaker names",
  ]
  measures = [feature["measure"] for feature in found.header["features"]]
  assert measures == ["r", "AUC", "AUC", "AUC"]
  for signal in found.header["layers"][1]["signals"]:
    levels = found.array(signal["blob"]).reshape(12, LENGTH)
    for k, feature in enumerate((line_position, inside_quotes)):
      expected = scores(levels, feature(text))
      assert np.abs(np.array(signal["scores"][k]) - expected).max() < 1e-4


def test_no_character_of_the_text_stands_in_the_page(explored_page):
  html = explored_page.read_text(encoding="utf-8")
  assert HOSTILE in Read(explored_page).text
  for part in ("document.title", "First Lord", "Shall I", "lovely"):
    assert part not in html
  scripts = html.count("<script")
  assert (
    scripts == html.count("</script") == len(Read(explored_page).scripts) + 1
  )
  assert not re.search(r"https?:|\bsrc=|@import|url\(", html)


def test_a_text_of_ones_own_is_read_from_its_beginning(
  explored_run, tmp_path, console
):
  own, output = tmp_path / "own.txt", tmp_path / "page.html"
  own.write_text("Shall I more\r\nlovely", encoding="utf-8")
  config = ExploreConfig(str(explored_run), str(own), 15, str(output))
  found = explore.run(config, console)
  assert found == (output, output.stat().st_size)
  shown = " ".join(console.file.getvalue().split())
  assert f"{output}: {found.size / 1e6:.1f} MB" in shown
  header = Read(output).header
  assert "".join(header["pieces"]) == "Shall I more\nlo"
  assert header["absent"] == ["inside quotes", "speaker names"]
  assert f"15 characters of {own}" in header["about"]


def test_a_run_over_words_is_shown_word_by_word(words_page, tmp_path, console):
  directory, own = words_page.parent, tmp_path / "own.txt"
  found, trained = Read(words_page), run_dir.load(directory)
  line = ["Thou", " art", " more", " lovely", ",", " more", "\n  "]
  line += ["<unk>", " Thou", " art", "\n", "more"]
  assert found.header["pieces"] == [*line, "\n", *line, "\n", *line]
  assert found.header["unit"] == "word"
  assert "38 words of" in found.header["about"]
  tokens = found.array(found.header["tokens"], "<u4")
  assert (tokens == trained.vocabulary.encode(own.read_text())).all()
  model, nothing = trained.model, trained.model.initial_state(())
  _, logits = model.apply(trained.params, nothing, tokens)
  p = np.asarray(jax.nn.softmax(logits))[np.arange(37), tokens[1:]]
  found_p = found.array(found.header["next"]["own"], "<f4")
  assert np.abs(found_p - p).max() < 1e-6
  names = [feature["name"] for feature in found.header["features"]]
  assert names == ["line position", "word starts"]
  short = ExploreConfig(str(directory), str(own), length=3)
  assert len(Read(explore.run(short, console).path).header["pieces"]) == 3


def test_what_cannot_be_explored_is_an_error_that_says_why(
  explored_run, tmp_path, word_config, console
):
  own = tmp_path / "text.txt"

  def refused(match, run=explored_run, text=None):
    if text is not None:
      own.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match) as error:
      explore.run(ExploreConfig(str(run), str(own)), console)
    assert "\n" not in str(error.value)

  refused("text.txt cannot be read: no such file")
  refused("text.txt is empty", text="")
  refused("at least 2 characters, got 1", text="S")
  refused("character 'é' at position 3 is not in the", text="Shaéll")
  own.write_text("Thou", encoding="utf-8")
  nowhere = tmp_path / "nowhere"
  with pytest.raises(
    ValueError, match="page cannot be written: no such folder"
  ):
    there = ExploreConfig(str(explored_run), str(own), 5, str(nowhere / "page"))
    explore.run(there, console)
  refused("there is no run in .*nowhere: no such folder", nowhere)
  refused("holds no checkpoint", tmp_path)
  words = write_run(word_config)
  refused("at least 2 words, got 1", words, text="Shall")
  assert not (words / run_dir.PAGE).exists()


def test_a_run_that_is_replaced_takes_its_page_with_it(config):
  with claimed(config, "") as (directory, _):
    page = directory / run_dir.PAGE
    page.write_text("of the first run")
  with claimed(dataclasses.replace(config, overwrite=True), ""):
    assert not page.exists()
    assert (directory / PREVIOUS / page.name).exists()


@pytest.mark.programs
def test_the_program_writes_a_page(explored_run, tmp_path):
  output = tmp_path / "page.html"
  flags = f"--run={explored_run}", "--length=30", f"--output={output}"
  status, out, err = finish(start("explore", *flags))
  assert (status, err) == (0, "")
  assert f"page    {output}: " in out
  assert len(Read(output).text) == 30


@NAMES
def test_every_cell_has_a_page(name, key):
  text = "to be or not to be"
  symbols = sorted(set(text))
  tokens = np.array([symbols.index(c) for c in text], np.int32)
  config = ModelConfig(
    len(symbols), CELLS[name], embedding_size=3, hidden_size=4, num_layers=2
  )
  params = language_model(config).init(key)
  blobs = Blobs()
  header = explore.describe(CELLS[name], params, tokens, [*text], blobs)
  letters = {"gru": "hrzn", "rnn": "h", "coupled_lstm": "hcfgo"}
  for layer in header["layers"]:
    found = "".join(signal["name"] for signal in layer["signals"])
    assert found == letters.get(name, "hcifgo")
    fields = [path["name"] for path in layer["paths"]]
    assert fields == (["h"] if name in ("gru", "rnn") else ["h", "c"])
  assert header["next"]["count"] == len(symbols) < explore.LIKELIEST
  assert 'id="header"' in blobs.page(header)
